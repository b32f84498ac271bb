"""Core Space: merge low-rank changes in the small space that their factors span."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper, Subject
from plait.methods._core import InnerMerge, merge_cores, trim_whole
from plait.methods._parameters import Density, Doc, PositiveInt
from plait.methods._spectral import SpectralCombiner, noise, stacked, weighted_deltas
from plait.tensors.factors import factor
from plait.tensors.lowrank import LowRank
from plait.tensors.spectral import SVD
from plait.tensors.subspaces import combine_subspaces, stack

__all__ = ["CoreSpace"]


@dataclass(frozen=True, kw_only=True)
class CoreSpace(InnerMerge, SpectralCombiner):
    """Project every task vector, without loss, on the columns and rows that all of them span; merge the cores there.

    τᵢ = Bᵢ Aᵢ: an adapter's own, or by an SVD to numerical rank (Bᵢ = Uᵢ√sᵢ, Aᵢ = √sᵢVᵢ); U = left singular vectors of
    [B₁ … B_T], V = right ones of [A₁; …; A_T]; Mᵢ = Uᵀ τᵢ Vᵀ; θ = θ₀ + λ · U merge(M₁, …, M_T) V, optionally with all
    singular values of the merged core set to their mean.

    Made for adapters (give `rank` where they were merged into low-precision weights); for full fine-tunes the space is
    everything. Sums, means and TSV-Merge do not depend on the basis; of dense task vectors they are computed without it
    (TSV-Merge: each at a 1/T share of the smaller side). TIES does: adapters are merged in the basis of their own
    A and B, as the authors do, dense task vectors in that of balanced factors. The authors' λ is 0.2 for `tsv`. Weights
    scale the deltas.

    Paper: Panariello et al., "Accurate and Efficient Low-Rank Model Merging in Core Space", NeurIPS 2025,
    arXiv 2509.17786.
    """

    name: ClassVar[str] = "core_space"
    summary: ClassVar[str] = "merge low-rank task vectors in the small space their factors span"
    formula: ClassVar[str] = "θ₀ + λ · U merge(Uᵀ τᵢ Vᵀ) V"
    paper: ClassVar[Paper | None] = Paper(
        "Accurate and Efficient Low-Rank Model Merging in Core Space",
        "Panariello et al.",
        2025,
        "2509.17786",
        "apanariello4/core-space-merging",
    )
    identity: ClassVar[Any] = {}
    by_factors: ClassVar[bool] = True

    inner: Annotated[str, Doc("how cores merge: tsv, ties, mean, sum, or any other method or chain by its name")] = (
        "tsv"
    )
    density: Annotated[Density, Doc("fraction of entries each core keeps, for ties and others that have one")] = 0.2
    isotropize: Annotated[bool, Doc("set all singular values of the merged core to their mean")] = False
    rank: Annotated[PositiveInt | None, Doc("rank of each expert's adapter; none: measured")] = None

    def arrays(self, subject: Subject, experts: int) -> float:
        """Only TIES and methods by name need the basis, and with it the Gram matrix of all experts' triplets."""
        if self.treatment(subject) != "spectral" or self.inner in ("tsv", "mean", "sum"):
            return super().arrays(subject, experts)
        shorter, longer = min(subject.shape), max(subject.shape)
        side = min(shorter * experts, longer)
        stacks = 2.0 * experts * shorter * (shorter + longer)  # the triplets, and scaled once more
        core = (min(subject.shape[0], shorter * experts), min(subject.shape[1], shorter * experts))
        inside = self.arrays_inside(subject, core, experts)
        return 2.0 + (stacks + 6.0 * side * side) / subject.numel + inside

    def update(self, group: Group) -> Tensor:
        """Factor and merge; in the common basis where that can be seen in the result."""
        if self.inner not in ("tsv", "mean", "sum") or group.low_rank is not None:
            return self._factors(group).dense()
        merged = self._tsv(group) if self.inner == "tsv" else self._linear(group)
        if not self.isotropize:
            return merged
        factors = factor(merged)
        rank = factors.rank
        return factors.polar(rank, overwrite=True).mul_(float(factors.s[:rank].mean()) if rank else 0.0)

    def _linear(self, group: Group) -> Tensor:
        """Σ τᵢ; each at the rank of its adapter where that is known, or where rounding would be lifted."""
        total: Tensor | None = None
        deltas, room = weighted_deltas(group), min(group.origin.shape)
        for i in range(group.count):
            delta = deltas[i]
            if self.rank is not None or self.isotropize:
                factors = group.factor(delta)
                rank = min(self.rank or room, factors.rank_above(noise(group) * abs(group.weights[i])))
                delta = delta if rank == room else factors.truncated(rank)
                del factors
            total = delta if total is None else total.add_(delta)
            del delta
        assert total is not None
        return total.div_(group.count) if self.inner == "mean" else total

    def _tsv(self, group: Group) -> Tensor:
        """TSV-Merge of the cores is that of the task vectors, each at a 1/T share of the smaller side of the space.

        One expert of full rank makes that side the matrix's own. Otherwise it is measured.
        """
        room = min(group.origin.shape)
        ranks: list[int] = []
        joined = stack(self._leading(group, max(1, room // group.count), ranks), room + group.count)
        if max(ranks) == room:
            return combine_subspaces(joined)
        del joined
        joined = stacked(group, ranks)
        root = joined.s.sqrt()
        room = min(factor(joined.u * root).rank, factor(joined.vh * root[:, None]).rank)
        return combine_subspaces([part.top(max(1, room // group.count)) for part in joined.parts()])

    def _leading(self, group: Group, kept: int, ranks: list[int]) -> Iterator[SVD]:
        """The largest triplets of each wᵢτᵢ in turn; takes note of the ranks."""
        floor, deltas = noise(group), group.deltas
        for i in range(group.count):
            factors = group.factor(deltas[i])
            rank = min(self.rank or min(group.origin.shape), factors.rank_above(floor))
            ranks.append(rank if group.weights[i] else 0)  # an expert of weight zero takes no part of the space
            part = factors.top(min(kept, ranks[-1])).scaled(group.weights[i])
            del factors
            yield part
            del part

    def update_low_rank(self, group: Group) -> LowRank:
        """The same for adapters, not expanded."""
        return self._factors(group)

    def _factors(self, group: Group) -> LowRank:
        """Factor, span, project, merge."""
        own = None if self.rank is not None else group.low_rank
        if own is not None:  # the adapters' own B and A
            parts = [part.scaled(weight) for part, weight in zip(own, group.weights, strict=True)]
            u, vh = _span(torch.cat([part.b for part in parts], 1)), _span(torch.cat([part.a for part in parts]).mT).mT
            cores = [(u.mT @ part.b) @ (part.a @ vh.mT) for part in parts]
        else:
            joined = stacked(group, [self.rank or min(group.origin.shape)] * group.count)
            root = joined.s.sqrt()
            u, vh = _span(joined.u * root), _span((joined.vh * root[:, None]).mT).mT
            cores = [((u.mT @ part.u) * part.s) @ (part.vh @ vh.mT) for part in joined.parts()]
            del joined
        if self.inner == "ties":
            cores = [trim_whole(core, self.density) for core in cores]
        merged = merge_cores(cores, self.inner, group, self.density)
        if self.isotropize and merged.numel():
            factors = factor(merged)
            merged = factors.polar(factors.rank) * float(factors.s[: factors.rank].mean() if factors.rank else 0.0)
        return LowRank(u @ merged, vh)


def _span(columns: Tensor) -> Tensor:
    """Left singular vectors, to numerical rank."""
    factors = factor(columns)
    return factors.top(factors.rank).u
