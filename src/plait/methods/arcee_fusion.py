"""Arcee fusion: take over only the entries whose change matters most to the softmax of their row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Subject, Unit
from plait.methods._parameters import Doc, Real
from plait.tensors.quantiles import count_coarse, count_quantiles, quantile

__all__ = ["ArceeFusion"]

_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, kw_only=True)
class ArceeFusion(Combiner):
    """Copy the expert's outstanding entries into the base, and leave the others.

    importance = |θ₁ − θ₀| · KL(softmax of θ₁'s row ‖ softmax of θ₀'s row); the expert's value where the importance is
    at least median + spread · (Q₃ − Q₁) of the tensor's importances, else the base's. A quartile between two elements
    is the lower one.

    mergekit estimates the quartiles of a tensor of more than a million entries from a random sample; here they are
    exact for every size, and the result is not random.

    Arcee 2024, arcee-ai/mergekit, `arcee_fusion`.
    """

    name: ClassVar[str] = "arcee_fusion"
    summary: ClassVar[str] = "copy the expert's entries of outstanding importance into the base"
    formula: ClassVar[str] = "θ₁ where |θ₁ − θ₀| · KL(row) ≥ median + 1.5 · IQR, else θ₀"
    paper: ClassVar[Paper | None] = Paper("Arcee fusion (mergekit)", "Arcee", 2024, "", "arcee-ai/mergekit")
    translates: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    max_experts: ClassVar[int | None] = 1
    identity: ClassVar[Any] = {"spread": -1e9}
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (10.5, 0.0)

    spread: Annotated[Real, Doc("how many interquartile ranges above the median an entry must stand")] = 1.5

    @property
    def rounds(self) -> int:
        """Two counting rounds for the quartiles."""
        return 2

    def unit(self, subject: Subject) -> Unit:
        """The softmax runs over whole rows."""
        return "row"

    def survey(self, group: Group) -> Any:
        """Count the importances, first coarsely, then around the quartiles."""
        values = _importance(group)
        return count_quantiles(values, group.facts[0], _SHARES) if group.facts else count_coarse(values)

    def merge(self, group: Group) -> Tensor:
        """Choose between the two models entry by entry."""
        coarse, fine = group.facts
        first, median, third = (quantile(coarse, fine, share, interpolate=False) for share in _SHARES)
        limit = median + self.spread * (third - first)
        return torch.where(_importance(group).double() >= limit, group.experts[0], group.origin)


def _importance(group: Group) -> Tensor:
    """|τ| · KL per row; the divergence is a small difference of large sums, hence float64."""
    ours = torch.log_softmax(group.experts[0].double(), dim=-1)
    theirs = torch.log_softmax(group.origin.double(), dim=-1)
    divergence = (ours.exp() * (ours - theirs)).sum(dim=-1, keepdim=True).clamp(min=0.0)
    return (group.deltas[0].abs() * divergence).float()
