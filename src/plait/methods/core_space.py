"""Core Space: merge low-rank changes in the small space that their factors span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._core import Inner, merge_cores, trim_whole
from plait.methods._parameters import Density, Doc, PositiveInt
from plait.methods._spectral import SpectralCombiner, stacked
from plait.tensors.factors import factor
from plait.tensors.lowrank import LowRank

__all__ = ["CoreSpace"]


@dataclass(frozen=True, kw_only=True)
class CoreSpace(SpectralCombiner):
    """Project every task vector, without loss, on the columns and rows that all of them span; merge the cores there.

    τᵢ = Bᵢ Aᵢ: an adapter's own, or by an SVD to numerical rank (Bᵢ = Uᵢ√sᵢ, Aᵢ = √sᵢVᵢ); U = left singular vectors of
    [B₁ … B_T], V = right ones of [A₁; …; A_T]; Mᵢ = Uᵀ τᵢ Vᵀ; θ = θ₀ + λ · U merge(M₁, …, M_T) V, optionally with all
    singular values of the merged core set to their mean.

    Made for adapters (give `rank` where they were merged into low-precision weights); for full fine-tunes the space is
    everything. Sums, means and TSV-Merge do not depend on the basis, TIES does: adapters are merged in the basis of
    their own A and B, as the authors do, dense task vectors in that of balanced factors. The authors' λ is 0.2 for
    `tsv`. Weights scale the deltas.

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
    temporaries: ClassVar[tuple[float, float]] = (0.5, 8.0)
    grams: ClassVar[float] = 0.0

    inner: Annotated[Inner, Doc("how cores merge")] = "tsv"
    density: Annotated[Density, Doc("fraction of entries each core keeps, for ties")] = 0.2
    isotropize: Annotated[bool, Doc("set all singular values of the merged core to their mean")] = False
    rank: Annotated[PositiveInt | None, Doc("rank of each expert's adapter; none: measured")] = None

    def update(self, group: Group) -> Tensor:
        """Factor, span, project, merge, expand."""
        return self._factors(group).dense()

    def update_low_rank(self, group: Group) -> LowRank:
        """The same, not expanded."""
        return self._factors(group)

    def _factors(self, group: Group) -> LowRank:
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
        merged = merge_cores(cores, self.inner)
        if self.isotropize and merged.numel():
            factors = factor(merged)
            merged = factors.polar(factors.rank) * float(factors.s[: factors.rank].mean() if factors.rank else 0.0)
        return LowRank(u @ merged, vh)


def _span(columns: Tensor) -> Tensor:
    """Left singular vectors, to numerical rank."""
    factors = factor(columns)
    return factors.top(factors.rank).u
