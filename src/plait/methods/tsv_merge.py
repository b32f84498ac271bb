"""TSV-Merge: join the experts' leading singular vectors, made orthogonal to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._parameters import Density, Doc, PositiveInt
from plait.methods._spectral import SpectralCombiner, rank_share, stacked
from plait.tensors.factors import polar
from plait.tensors.lowrank import LowRank
from plait.tensors.subspaces import Orthogonalize, Subspaces, combine_subspaces, gram_whitening

__all__ = ["TsvMerge"]


@dataclass(frozen=True, kw_only=True)
class TsvMerge(SpectralCombiner):
    """Give each expert its share of every matrix's rank and remove the overlap between their singular vectors.

    τᵢ = Uᵢ diag(sᵢ) Vᵢ, cut to its k = ⌊min(m, n)/T⌋ largest triplets;
    θ = θ₀ + λ · polar([U₁ … U_T]) diag([s₁ … s_T]) polar([V₁; …; V_T]).

    λ = 1 is near the best one. Each expert keeps at least one triplet, and none that is only rounding, so adapters and
    equal experts are well defined (T equal experts give the truncated expert). Weights scale the deltas (and so the
    singular values) before the merge: FusionBench's list `alpha`. `rank_fraction: 1` is the authors' lossless variant,
    `orthogonalize: gram` their eigenvalue variant (always by the T·k × T·k Gram matrices, also where these square the
    condition beyond what float64 resolves), `orthogonalize: none` their plain rank reduction.

    Paper: Gargiulo et al., "Task Singular Vectors: Reducing Task Interference in Model Merging", CVPR 2025,
    arXiv 2412.00081.
    """

    name: ClassVar[str] = "tsv_merge"
    summary: ClassVar[str] = "leading singular vectors of every expert, made orthogonal to each other"
    formula: ClassVar[str] = "θ₀ + λ · polar([Uᵢ]) diag([sᵢ]) polar([Vᵢ])"
    paper: ClassVar[Paper | None] = Paper(
        "Task Singular Vectors: Reducing Task Interference in Model Merging",
        "Gargiulo et al.",
        2025,
        "2412.00081",
        "AntoAndGar/task_singular_vectors",
    )
    identity: ClassVar[Any] = {}
    by_factors: ClassVar[bool] = True

    rank_fraction: Annotated[Density | None, Doc("share of a matrix's rank each expert keeps; none: 1/T")] = None
    rank: Annotated[PositiveInt | None, Doc("triplets each expert keeps, instead of a share: an adapter's rank")] = None
    orthogonalize: Annotated[
        Orthogonalize, Doc("polar factor as exact as by an SVD, or always by Gram eigenvalues, or none")
    ] = "svd"

    def update(self, group: Group) -> Tensor:
        """Cut, concatenate, orthogonalise, multiply."""
        return combine_subspaces(self._cut(group), self.orthogonalize)

    def update_low_rank(self, group: Group) -> LowRank:
        """The same, not multiplied."""
        joined = self._cut(group)
        if self.orthogonalize == "none":
            return LowRank(joined.u * joined.s, joined.vh)
        if self.orthogonalize == "svd":
            return LowRank(polar(joined.u) * joined.s, polar(joined.vh))
        return LowRank((joined.u @ gram_whitening(joined.u)) * joined.s, gram_whitening(joined.vh.mT) @ joined.vh)

    def _cut(self, group: Group) -> Subspaces:
        if self.rank is not None:
            kept = self.rank
        elif self.rank_fraction is not None:
            kept = max(1, int(min(group.origin.shape) * self.rank_fraction))
        else:
            kept = rank_share(group)
        return stacked(group, [kept] * group.count)
