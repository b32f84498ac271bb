"""SCE: select by variance, calculate weights, erase minority signs (FuseChat)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper
from plait.methods._order import ROUNDS, order_statistics, survey_order
from plait.methods._parameters import Density, Doc, NonNegative, Real
from plait.tensors.consensus import disjoint_merge, elect, variance
from plait.tensors.sums import Each, count, norm2_squared

__all__ = ["Sce"]


@dataclass(frozen=True, kw_only=True)
class Sce(Combiner):
    """Weigh the experts by how much they changed where they disagree most, and merge those with the majority's sign.

    Per tensor: M = the `select_topk` entries of largest variance over the experts, out of those where it is not zero;
    ηⱼ = Σ(Mτⱼ)² / Σₖ Σ(Mτₖ)², uniform where all are zero; s = sign(Σ τⱼ), zero counting as +;
    θ = θ₀ + λ · Σ ηⱼτⱼ[sign τⱼ = s] / Σ ηⱼ[sign τⱼ = s].

    In the authors' code M decides on the weights η alone. In their paper and in mergekit the task vectors are masked by
    it as well (`select: deltas`), so that what is not selected stays at the base; mergekit also takes equal weights
    where the mean squares add up to less than `negligible: 1e-6`. `select_topk: 1` selects every entry.

    Paper: Wan et al., "FuseChat: Knowledge Fusion of Chat Models", 2024, arXiv 2408.07990.
    """

    name: ClassVar[str] = "sce"
    summary: ClassVar[str] = "weights from the entries of largest variance, majority sign per entry (FuseChat)"
    formula: ClassVar[str] = "θ₀ + λ · Σ ηⱼτⱼ[sign τⱼ = s] / Σ ηⱼ[sign τⱼ = s], ηⱼ ∝ Σ(Mτⱼ)²"
    paper: ClassVar[Paper | None] = Paper(
        "FuseChat: Knowledge Fusion of Chat Models", "Wan et al.", 2024, "2408.07990", "fanqiwan/FuseAI"
    )
    weighted: ClassVar[bool] = False
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (6.5, 2.0)

    select_topk: Annotated[Density, Doc("fraction of the entries with any variance that are selected")] = 0.1
    select: Annotated[Literal["weights", "deltas"], Doc("what the selection masks: the weights alone, or all")] = (
        "weights"
    )
    negligible: Annotated[NonNegative, Doc("below this sum of mean squares the experts weigh the same")] = 0.0
    lambda_: Annotated[Real, Doc("scale of the merged task vector")] = 1.0

    @property
    def _counting(self) -> int:
        return ROUNDS if self.select_topk < 1 else 0

    @property
    def rounds(self) -> int:
        """Two to find the variance of the last selected entry, one for the weights."""
        return self._counting + 1

    def _rank(self, nonzero: int) -> int:
        return int(self.select_topk * nonzero)

    def survey(self, group: Group) -> Any:
        """Counts of variances and of those above zero, then sums of squares."""
        done = len(group.facts)
        if done >= self._counting:
            return Each(tuple(norm2_squared(delta) for delta in self._selected(group)))
        spread = variance(group.deltas)
        if not done:
            return Each((survey_order([spread], (), lambda i, n: ()), count(spread != 0)))
        upper, nonzero = group.facts[0].items
        return survey_order([spread], [upper], lambda i, n: (max(self._rank(nonzero), 1),))

    def _selected(self, group: Group) -> Sequence[Tensor]:
        if not self._counting:
            return group.deltas
        upper, nonzero = group.facts[0].items
        rank = self._rank(nonzero)
        if not rank:
            return tuple(torch.zeros_like(delta) for delta in group.deltas)
        ((limit,),) = order_statistics([upper, group.facts[1]], lambda i, n: (rank,))
        mask = variance(group.deltas).to(torch.float32) >= limit
        return tuple(delta * mask for delta in group.deltas)

    def merge(self, group: Group) -> Tensor:
        """Weigh, erase, merge."""
        deltas = self._selected(group) if self.select == "deltas" else group.deltas
        squares = [float(item) for item in group.facts[-1].items]
        total = sum(squares)
        if total <= 0 or total / max(group.subject.numel, 1) < self.negligible:
            eta = [1.0 / group.count] * group.count
        else:
            eta = [square / total for square in squares]
        sign = elect(deltas)
        sign = torch.where(sign == 0, 1.0, sign)
        scaled = [delta * share for delta, share in zip(deltas, eta, strict=True)]
        return group.origin + self.lambda_ * disjoint_merge(scaled, sign, eta)
