"""DC-Merge: merge in a cover space of all experts' singular vectors, where directions stay consistent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper, Subject
from plait.methods._parameters import Bounds, Density, Doc, PositiveInt
from plait.methods._spectral import SpectralCombiner, rank_share, stacked
from plait.tensors.consensus import disjoint_merge, elect
from plait.tensors.factors import polar
from plait.tensors.lowrank import LowRank
from plait.tensors.selection import at_least, row_threshold

__all__ = ["DcMerge"]


@dataclass(frozen=True, kw_only=True)
class DcMerge(SpectralCombiner):
    """Smooth each expert's energy, project into the common cover space, merge the small cores there.

    τᵢ ≈ Uᵢ diag(sᵢ) Vᵢ with k = ⌊min(m, n)/T⌋ triplets; s'ᵢ: the same energy Σs spread evenly or linearly over them;
    Û = polar([U₁ … U_T]), V̂ = polar([V₁; …; V_T]); Mᵢ = Ûᵀ Uᵢ diag(s'ᵢ) Vᵢ V̂ᵀ, of which the `density` largest entries
    are kept; M = their sign-consistent mean, its T diagonal blocks; θ = θ₀ + λ · Û M V̂.

    The authors smooth adapters (`avg`, or `linear` with ρ = 5) and not full fine-tunes. `density` is a share of the
    padded core, min(m, n)² entries for full fine-tunes and (T · rank)² for adapters. λ is searched in 0.1, 0.2, …, 3.

    Paper: Zhang et al., "DC-Merge: Improving Model Merging with Directional Consistency", CVPR 2026,
    arXiv 2603.06242.
    """

    name: ClassVar[str] = "dc_merge"
    summary: ClassVar[str] = "sign-consistent merge of energy-smoothed experts in a common cover space"
    formula: ClassVar[str] = "θ₀ + λ · Û blocks(TIES(Ûᵀ τ̂ᵢ V̂ᵀ)) V̂"
    paper: ClassVar[Paper | None] = Paper(
        "DC-Merge: Improving Model Merging with Directional Consistency",
        "Zhang et al.",
        2026,
        "2603.06242",
        "Tobeginwith/DC-Merge",
    )
    identity: ClassVar[Any] = {"density": 1.0}
    by_factors: ClassVar[bool] = True
    temporaries: ClassVar[tuple[float, float]] = (0.5, 0.0)

    smoothing: Annotated[
        Literal["none", "avg", "linear"], Doc("how each expert's energy is spread over its directions")
    ] = "none"
    rho: Annotated[float, Bounds(ge=1), Doc("largest ratio of first to last singular value, for linear")] = 5.0
    density: Annotated[Density, Doc("share of each core's entries that is kept")] = 1e-3
    rank: Annotated[PositiveInt | None, Doc("triplets each expert keeps: an adapter's rank; none: a 1/T share")] = None

    def arrays(self, subject: Subject, experts: int) -> float:
        """Every expert has a core of its own in the common space."""
        cores = min(subject.shape) ** 2 / subject.numel if self.treatment(subject) == "spectral" else 0.0
        return super().arrays(subject, experts) + experts * cores

    def _smooth(self, values: Tensor) -> Tensor:
        """Σs spread with weights falling linearly from ρ' = min(ρ, s₁/s_k) to 1; ρ' = 1 is the average."""
        if self.smoothing == "none" or not values.numel():
            return values
        ratio = min(self.rho, float(values[0] / values[-1])) if self.smoothing == "linear" else 1.0
        shares = torch.linspace(ratio, 1.0, values.numel(), dtype=values.dtype, device=values.device)
        return values.sum() * shares / shares.sum()

    def update(self, group: Group) -> Tensor:
        """Cut, smooth, project, sparsify, elect, mask, expand."""
        return self._factors(group).dense()

    def update_low_rank(self, group: Group) -> LowRank:
        """The same, not expanded."""
        return self._factors(group)

    def _factors(self, group: Group) -> LowRank:
        joined = stacked(group, [self.rank or rank_share(group)] * group.count)
        u, vh, parts = polar(joined.u), polar(joined.vh), joined.parts()
        size = min(group.origin.shape) if self.rank is None else self.rank * group.count
        kept = max(1, int(self.density * size * size))
        cores = [_largest(((u.mT @ part.u) * self._smooth(part.s)) @ (part.vh @ vh.mT), kept) for part in parts]
        merged = disjoint_merge(cores, elect(cores), [1.0] * group.count)
        blocks = [merged.new_ones(size, size) for size in joined.sizes]
        del joined, parts, cores
        return LowRank(u @ (merged * torch.block_diag(*blocks)), vh)


def _largest(core: Tensor, kept: int) -> Tensor:
    """Zero all but the `kept` largest entries; entries that equal the last one stay too."""
    if kept >= core.numel():
        return core
    return core * at_least(core, float(row_threshold(core.reshape(1, -1), kept)))
