"""Model Stock: pull the average towards the base by the angle between the experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Subject, Unit
from plait.methods._parameters import Doc, NonNegative
from plait.tensors.consensus import weighted_sum
from plait.tensors.geometry import cosines, gram, gram_matrix, gram_rows
from plait.tensors.sums import Each

__all__ = ["ModelStock"]

_POLE = 1e-6


@dataclass(frozen=True, kw_only=True)
class ModelStock(Combiner):
    """Interpolate between the base and the average of N fine-tuned models by how much their updates agree.

    With c = cos of the angle between updates, t = N·c / (1 + (N−1)·c) and θ = t · mean θᵢ + (1 − t) · θ₀: orthogonal
    updates give the base, parallel ones the average.

    For N > 2 the paper leaves the angle open: mergekit and MergeLLM average the pairwise cosines, FusionBench the
    angles (`average: angle`). mergekit's `filter_wise` is `scope: row`. Updates that oppose each other give t < 0,
    away from the average, and infinity at c = −1/(N−1); by default t is kept in [0, 1]. The other tools do not
    (`clamp: false`; t is 0 where the denominator falls below 1e-6); mergekit and MergeLLM also count a product of two
    norms below 1e-6 as 1e-6 (`floor: 1.0e-6`).

    Paper: Jang et al., "Model Stock: All we need is just a few fine-tuned models", ECCV 2024, arXiv 2403.19522.
    """

    name: ClassVar[str] = "model_stock"
    summary: ClassVar[str] = "average pulled towards the base by the angle between the experts"
    formula: ClassVar[str] = "t · mean θᵢ + (1 − t) · θ₀, t = N·c / (1 + (N−1)·c)"
    paper: ClassVar[Paper | None] = Paper(
        "Model Stock: All we need is just a few fine-tuned models",
        "Jang et al.",
        2024,
        "2403.19522",
        "naver-ai/model-stock",
    )
    weighted: ClassVar[bool] = False
    min_experts: ClassVar[int] = 2
    identity: ClassVar[Any] = None
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (3.0, 1.0)

    scope: Annotated[Literal["tensor", "row"], Doc("one angle per tensor, or one per row")] = "tensor"
    average: Annotated[Literal["cosine", "angle"], Doc("what is averaged over pairs of more than two experts")] = (
        "cosine"
    )
    clamp: Annotated[bool, Doc("keep t in [0, 1], so that the result lies between base and average")] = True
    floor: Annotated[NonNegative, Doc("a product of two norms below this counts as this")] = 0.0

    @property
    def rounds(self) -> int:
        """One round for the angles of a tensor; rows are seen whole."""
        return int(self.scope == "tensor")

    def unit(self, subject: Subject) -> Unit:
        """Rows need their own angle; otherwise elementwise."""
        return "row" if self.scope == "row" else "element"

    def survey(self, group: Group) -> Each:
        """Inner products of the updates in one block."""
        return gram(group.deltas)

    def _ratio(self, matrix: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b"]:
        count = matrix.shape[-1]
        rows, columns = torch.triu_indices(count, count, 1)
        pairs = cosines(matrix, self.floor)[..., rows, columns]
        cosine = pairs.acos().mean(-1).cos() if self.average == "angle" else pairs.mean(-1)
        below = 1.0 + (count - 1) * cosine
        pole = below < _POLE
        t = torch.where(pole, 0.0, count * cosine / torch.where(pole, 1.0, below))
        return t.clamp(0.0, 1.0) if self.clamp else t

    def merge(self, group: Group) -> Tensor:
        """Scale the mean update by t."""
        mean = weighted_sum(group.deltas, (1.0 / group.count,) * group.count)
        if self.scope == "row":
            share = self._ratio(gram_rows(group.deltas))[:, None].to(mean.dtype)
            return group.origin + share * mean
        return group.origin + float(self._ratio(gram_matrix(group.facts[0]))) * mean
