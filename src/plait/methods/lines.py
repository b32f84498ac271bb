"""LiNeS: scale the update of every layer by its depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from plait.methods._contract import Group, Modifier, Paper, Scope
from plait.methods._parameters import Doc, Fixed, NonNegative, Real
from plait.tensors.sums import Each, norm1

__all__ = ["Lines"]


@dataclass(frozen=True, kw_only=True)
class Lines(Modifier):
    """Scale the merged update linearly with depth: little in shallow layers, which are general, more in deep ones.

    τ̂ = (alpha + beta · l/(L−1)) · τ for a tensor in layer l of L; τ̂ = alpha · τ for all others (embeddings, final
    norm, head), where τ is the update of the combiner before it. A stack of one layer gets alpha.

    Without `alpha` it is ‖Σ τᵢ‖₁ / ‖τ‖₁ / T over the whole model, as for merging in the paper: 1/T behind plain task
    arithmetic, more where a combiner has shrunk the update, so that the coefficients of the combiner do not matter.
    τᵢ are the experts as the combiner sees them, without their weights. Without `beta` it is 1 − alpha, as for editing
    one model in the paper; for merging the authors choose it on validation data from 0.1, 0.2, …, 1.0 (1.5 for TIES).

    Paper: Wang et al., "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging", ICLR 2025,
    arXiv 2410.17146.
    """

    name: ClassVar[str] = "lines"
    summary: ClassVar[str] = "scale the merged update linearly with layer depth"
    formula: ClassVar[str] = "θ₀ + (alpha + beta · l/(L−1)) · τ"
    paper: ClassVar[Paper | None] = Paper(
        "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
        "Wang et al.",
        2025,
        "2410.17146",
        "wang-kee/LiNeS",
    )
    identity: ClassVar[Any] = {"alpha": 1.0, "beta": 0.0}
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (4.5, 1.0)

    alpha: Annotated[NonNegative | None, Fixed(), Doc("scale of the first layer; left out: from the L1 norms")] = None
    beta: Annotated[Real | None, Fixed(), Doc("what the last layer gets on top; left out: 1 − alpha")] = None

    @property
    def rounds(self) -> int:
        """One round for the L1 norms where alpha is not given."""
        return int(self.alpha is None)

    @property
    def survey_scope(self) -> Scope:
        """The norms are those of the whole model."""
        return "model"

    def survey(self, group: Group) -> Each:
        """‖Σ τᵢ‖₁ and ‖τ‖₁ of one block."""
        total = group.deltas[0].clone()
        for delta in group.deltas[1:]:
            total.add_(delta)
        return Each((norm1(total), norm1(_merged(group) - group.origin)))

    def _alpha(self, group: Group) -> float:
        if self.alpha is not None:
            return self.alpha
        summed, merged = (float(item) for item in group.facts[0].items)
        return summed / merged / group.count if merged > 0 else 1.0

    def adjust(self, group: Group) -> Tensor:
        """Scale the update by the tensor's place."""
        scale = alpha = self._alpha(group)
        beta = self.beta if self.beta is not None else max(0.0, 1.0 - alpha)
        role = group.role
        if role.layer is not None and role.layers > 1:
            scale += beta * role.layer / (role.layers - 1)
        merged = _merged(group)
        return merged if scale == 1.0 else group.origin + scale * (merged - group.origin)


def _merged(group: Group) -> Tensor:
    assert group.merged is not None  # the engine runs a combiner before every modifier
    return group.merged
