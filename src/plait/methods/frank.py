"""FRANK: fuse a vision and a reasoning expert layer by layer, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from plait.errors import RecipeError
from plait.methods._contract import Combiner, Group, Paper, Scope, Subject, Unit
from plait.methods._parameters import Doc, Fixed, Real
from plait.tensors.summaries import ByKey
from plait.tensors.sums import Each, norm2_squared

__all__ = ["Frank", "fit_decay"]


def fit_decay(attention: Sequence[float]) -> float:
    """Least squares of log aₗ = log C − α·l over the layers: α, the rate at which attention to the image fades."""
    count = len(attention)
    logs = [math.log(value) for value in attention]
    middle, mean = (count - 1) / 2, math.fsum(logs) / count
    spread = math.fsum((l - middle) ** 2 for l in range(count))
    return -math.fsum((l - middle) * (y - mean) for l, y in enumerate(logs)) / spread if spread else 0.0


@dataclass(frozen=True, kw_only=True)
class Frank(Combiner):
    """Add a vision expert's and a reasoning expert's updates with shares found per decoder layer.

    The first expert V is the multimodal model, the second R the reasoning model, `base` the language model of both.
    With n = ‖τ‖² over all tensors of a layer, λ_V = w_V·n_V / (w_V·n_V + w_R·n_R), λ_R = 1 − λ_V and
    θ = θ₀ + λ_V·τ_V + λ_R·τ_R. Without a prior w_V = w_R. A prior is `attention`, the mean attention from text to image
    tokens of every layer, or the `decay` α fitted to it; w_R = 1 − w_V. With `prior: paper`, as printed,
    w_V = e^(−αl)/Σⱼ e^(−αj), which sums to 1 over the layers, so that the vision share is small in deep models; with
    `prior: relative` w_V = aₗ/max a (e^(−αl) from l = 0 where only `decay` is given).

    Tensors outside the layers are not described in the paper; they are the first expert's. Its vision tower, which the
    others lack, is taken with a `copy` rule.

    Paper: Wei & Chen, "Training-Free Reasoning and Reflection in MLLMs", 2025, arXiv 2505.16151.
    """

    name: ClassVar[str] = "frank"
    summary: ClassVar[str] = "fuse a vision and a reasoning expert with closed-form shares per layer"
    formula: ClassVar[str] = "θ₀ + λ_V·τ_V + (1 − λ_V)·τ_R, λ_V = w_V‖τ_V‖² / (w_V‖τ_V‖² + w_R‖τ_R‖²)"
    paper: ClassVar[Paper | None] = Paper(
        "Training-Free Reasoning and Reflection in MLLMs", "Wei & Chen", 2025, "2505.16151"
    )
    weighted: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    min_experts: ClassVar[int] = 2
    max_experts: ClassVar[int | None] = 2
    identity: ClassVar[Any] = None
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (5.0, 0.0)

    attention: Annotated[
        tuple[float, ...] | None, Doc("mean attention from text to image tokens, one number per layer")
    ] = None
    decay: Annotated[Real | None, Fixed(), Doc("rate at which that attention fades per layer, instead of it")] = None
    prior: Annotated[Literal["paper", "relative"], Doc("how the attention becomes a weight of a layer")] = "paper"

    @property
    def rounds(self) -> int:
        """One round for the norms of every layer's updates."""
        return 1

    @property
    def survey_scope(self) -> Scope:
        """A layer has several tensors."""
        return "model"

    def check(self, weights: tuple[float, ...]) -> None:
        """Refuse attention that has no logarithm."""
        if self.attention is not None and not all(
            isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in self.attention
        ):
            raise RecipeError("the attention of 'frank' must be positive finite numbers, one per layer.")
        if self.attention is not None and self.decay is not None:
            raise RecipeError("'frank' takes attention or decay, not both: the decay is fitted to the attention.")

    def unit(self, subject: Subject) -> Unit:
        """Elementwise; the depth of the model is known here first, so this is where it is checked.

        Raises:
            RecipeError: if `attention` has another length than the model has layers.
        """
        role = subject.role
        if self.attention is not None and role.layer is not None and len(self.attention) != role.layers:
            raise RecipeError(
                f"'frank' needs one attention per layer: {len(self.attention)} given, {role.stack or 'the model'} has "
                f"{role.layers} (tensor {subject.name})."
            )
        return "element"

    def survey(self, group: Group) -> ByKey:
        """‖τ‖² of both experts, under the layer's key."""
        if group.role.layer is None:
            return ByKey({})
        return ByKey({(group.role.stack, group.role.layer): Each(tuple(map(norm2_squared, group.deltas)))})

    def _prior(self, layer: int, layers: int) -> tuple[float, float]:
        if self.attention is None and self.decay is None:
            return 1.0, 1.0
        if self.prior == "relative" and self.attention is not None:
            vision = self.attention[layer] / max(self.attention)
        else:
            decay = self.decay if self.decay is not None else fit_decay(self.attention or ())
            logs = [-decay * l for l in range(layers)]
            powers = [math.exp(value - max(logs)) for value in logs]
            vision = powers[layer] / (math.fsum(powers) if self.prior == "paper" else 1.0)
        return vision, 1.0 - vision

    def merge(self, group: Group) -> Tensor:
        """Add both updates with the layer's shares; outside the layers keep the first expert."""
        role = group.role
        if role.layer is None:
            return group.experts[0].clone()
        share = self._share(group.facts[0][(role.stack, role.layer)], role.layer, role.layers)
        return group.origin + (share * group.deltas[0] + (1.0 - share) * group.deltas[1])

    def _share(self, total: Each, layer: int, layers: int) -> float:
        """λ_V of a layer; one half where nothing has changed."""
        vision, reasoning = (w * float(n) for w, n in zip(self._prior(layer, layers), total.items, strict=True))
        return vision / (vision + reasoning) if vision + reasoning > 0 else 0.5
