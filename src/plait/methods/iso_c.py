"""Iso-C: the summed task vectors with a flat spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._parameters import Doc, PositiveInt
from plait.methods._spectral import SpectralCombiner, noise, summed, weighted_deltas
from plait.tensors.factors import Factors

__all__ = ["IsoC", "common_factors"]


def common_factors(group: Group, rank: int | None) -> tuple[Factors, int]:
    """Factors of Σ wᵢτᵢ and its numerical rank, at most `rank` directions per expert where that is given.

    A flat spectrum lifts every direction to the mean singular value: rounding in an arbitrary basis must not be lifted.
    """
    factors = group.factor(summed(weighted_deltas(group)))
    known = factors.rank_above(noise(group) * sum(abs(w) for w in group.weights))
    return factors, known if rank is None else min(known, rank * group.count)


@dataclass(frozen=True, kw_only=True)
class IsoC(SpectralCombiner):
    """Sum the task vectors and replace all singular values by their mean.

    Σ wᵢτᵢ = U diag(s) V; θ = θ₀ + λ · mean(s) · U V.

    The mean runs over the numerical rank (for full fine-tunes: all min(m, n) values), so adapters, whose sum has a low
    rank, are well defined; with adapters merged into low-precision weights give `rank`. The authors choose λ on
    validation data from 0.1, 0.2, …, 3.0 (about 1.3 to 2 for eight tasks).

    Paper: Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
    ICML 2025, arXiv 2502.04959.
    """

    name: ClassVar[str] = "iso_c"
    summary: ClassVar[str] = "summed task vectors with all singular values equal"
    formula: ClassVar[str] = "θ₀ + λ · mean(s) · U V of Σ wᵢτᵢ"
    paper: ClassVar[Paper | None] = Paper(
        "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
        "Marczak et al.",
        2025,
        "2502.04959",
        "danielm1405/iso-merging",
    )
    identity: ClassVar[Any] = None
    temporaries: ClassVar[tuple[float, float]] = (0.0, 0.0)
    grams: ClassVar[float] = 5.5

    rank: Annotated[PositiveInt | None, Doc("rank of each expert, where they are adapters; none: measured")] = None

    def update(self, group: Group) -> Tensor:
        """Factor the sum and flatten its spectrum."""
        factors, rank = common_factors(group, self.rank)
        return factors.polar(rank, overwrite=True).mul_(float(factors.s[:rank].mean()) if rank else 0.0)
