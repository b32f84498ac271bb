"""Model Breadcrumbs: drop the largest and the smallest changes of each task vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper, Sparsifier, Subject, Unit
from plait.methods._elect import ELECT_AND_MERGE
from plait.methods._order import ROUNDS, order_statistics, survey_order
from plait.methods._parameters import Density, Doc, Fraction, PerExpert
from plait.methods._trim import l1_factors, l1_sums, per_expert
from plait.tensors.selection import row_threshold

__all__ = ["COMPOSITIONS", "Breadcrumbs"]

#: the paper's whole method, and mergekit's with a sign election behind it, which sums those who agree
COMPOSITIONS = {
    "model_breadcrumbs": ("breadcrumbs", ("task_arithmetic", {"normalize": False})),
    "breadcrumbs_ties": ("breadcrumbs", ("ties", {**ELECT_AND_MERGE, "combine": "sum"})),
}


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Sparsifier):
    """Keep the middle of each delta: without the outliers at the top and the noise at the bottom.

    Of the n magnitudes of a row, the int(γn) largest are dropped, then the int(density·n) largest of the rest are
    kept. Entries that equal a kept one are kept with it.

    Defaults are the authors' example; their code masks rows (the last dimension; of a convolution its last spatial
    one), the paper speaks of whole layers: `scope: tensor`. mergekit's variant is `scope: tensor, crowded: drop_less`,
    MergeLLM's `scope: tensor, counts: dropped`.

    Paper: Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", ECCV 2024,
    arXiv 2312.06795.
    """

    name: ClassVar[str] = "breadcrumbs"
    summary: ClassVar[str] = "drop the largest outliers and the small changes of each task vector"
    formula: ClassVar[str] = "τ̂ᵢ = the entries of τᵢ at magnitude ranks (γn, (γ + density)·n]"
    paper: ClassVar[Paper | None] = Paper(
        "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
        "Davari and Belilovsky",
        2024,
        "2312.06795",
        "rezazzr/breadcrumbs",
    )
    identity: ClassVar[Any] = {"density": 1.0, "gamma": 0.0}
    temporaries: ClassVar[tuple[float, float]] = (2.5, 2.5)

    density: Annotated[Density | tuple[float, ...], PerExpert(), Doc("fraction of entries each expert keeps")] = 0.2
    gamma: Annotated[Fraction | tuple[float, ...], PerExpert(), Doc("fraction of largest entries that are dropped")] = (
        0.1
    )
    scope: Annotated[Literal["row", "tensor"], Doc("what the fractions are counted over")] = "row"
    remove_first: Annotated[bool, Doc("drop the largest before counting those kept, not out of them")] = True
    crowded: Annotated[
        Literal["keep_less", "drop_less"], Doc("what gives way where gamma and density do not fit into one")
    ] = "keep_less"
    counts: Annotated[
        Literal["kept", "dropped"], Doc("round down the numbers of kept entries, or those of dropped ones")
    ] = "kept"
    rescale: Annotated[Literal["none", "l1"], Doc("scale what is kept of a tensor back to its L1 norm")] = "none"
    drop_small_tensors: Annotated[
        bool, Doc("repeat mergekit's bug: where int(gamma·n) is 0, everything is dropped")
    ] = False

    @property
    def _counting(self) -> int:
        return ROUNDS if self.scope == "tensor" else 0

    @property
    def rounds(self) -> int:
        """Rows are masked whole; a tensor's two thresholds are counted; one more round for L1 norms."""
        return self._counting + (self.rescale == "l1")

    def unit(self, subject: Subject) -> Unit:
        """Elementwise once the thresholds are known."""
        return "row" if self.scope == "row" else "element"

    def _kept(self, n: int, density: float, gamma: float) -> tuple[int, int] | None:
        """First and last rank that is kept, from 1, the largest; None where nothing is."""
        if self.counts == "dropped":
            small = int(n * max(round(1.0 - density - gamma, 12), 0.0))
            large = int(n * round(1.0 - density, 12)) - small
            return large + 1, min(n, n - small + 1)  # the last one dropped at the bottom stays after all
        large, kept = int(n * gamma), int(n * density)
        last = large + kept if self.remove_first else kept
        if self.crowded == "drop_less" and last > n:
            large = n - kept
        if self.drop_small_tensors and large == 0:
            return None
        return (large + 1, min(n, last)) if large < min(n, last) else None

    def _each(self, group: Group, n: int) -> list[tuple[int, int] | None]:
        pairs = zip(per_expert(self.density, group.count), per_expert(self.gamma, group.count), strict=True)
        return [self._kept(n, density, gamma) for density, gamma in pairs]

    def survey(self, group: Group) -> Any:
        """Counts for the two thresholds of each expert, then L1 norms before and after the mask."""
        if len(group.facts) >= self._counting:
            return l1_sums(group.deltas, self._masked(group))
        kept = self._each(group, group.subject.numel)
        return survey_order([delta.abs() for delta in group.deltas], group.facts, lambda i, _: kept[i] or (1, 1))

    def sparsify(self, group: Group) -> Sequence[Tensor]:
        """Zero what lies outside the two thresholds, and rescale."""
        masked = self._masked(group)
        if self.rescale == "none":
            return masked
        return tuple(delta * factor for delta, factor in zip(masked, l1_factors(group.facts[-1]), strict=True))

    def _masked(self, group: Group) -> Sequence[Tensor]:
        if self.scope == "row":
            if not group.subject.shape:  # a scalar is no row: the authors leave it as it is
                return group.deltas
            kept = self._each(group, group.subject.row)
            limits = [
                (row_threshold(delta, ranks[0]), row_threshold(delta, ranks[1])) if ranks else None
                for delta, ranks in zip(group.deltas, kept, strict=True)
            ]
        else:
            kept = self._each(group, group.subject.numel)
            found = order_statistics(group.facts[: self._counting], lambda i, _: kept[i] or (1, 1))
            limits = [pair if ranks else None for pair, ranks in zip(found, kept, strict=True)]
        return tuple(_between(delta, pair) for delta, pair in zip(group.deltas, limits, strict=True))


def _between(delta: Tensor, limits: Any) -> Tensor:
    if limits is None:
        return torch.zeros_like(delta)
    high, low = limits
    size = delta.abs().to(torch.float32)
    return delta * ((size <= high) & (size >= low))
