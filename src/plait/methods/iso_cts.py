"""Iso-CTS: Iso-C with room for directions that single tasks need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._parameters import Doc, Fraction, PositiveInt
from plait.methods._spectral import SpectralCombiner, noise, weighted_deltas
from plait.methods.iso_c import IsoC, common_factors
from plait.tensors.spectral import polar

__all__ = ["IsoCts"]


@dataclass(frozen=True, kw_only=True)
class IsoCts(SpectralCombiner):
    """Keep the leading common directions, fill the rest with task-specific ones, and flatten the spectrum.

    With r directions in all: c ≈ `common` · r leading triplets of Σ wᵢτᵢ and k = (r − c)/T leading triplets of each
    (1 − U_c U_cᵀ) wᵢτᵢ, concatenated; θ = θ₀ + λ · mean(s̃) · polar(Ũ) polar(Ṽ).

    r is the numerical rank of the sum (for full fine-tunes min(m, n)), so adapters are well defined; the authors'
    adapter variant is `rank`. `common: 1` is Iso-C.

    Paper: Marczak et al., "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
    ICML 2025, arXiv 2502.04959.
    """

    name: ClassVar[str] = "iso_cts"
    summary: ClassVar[str] = "common and task-specific directions with all singular values equal"
    formula: ClassVar[str] = "θ₀ + λ · mean(s̃) · polar([Uᵢ, U_c]) polar([Vᵢ; V_c])"
    paper: ClassVar[Paper | None] = IsoC.paper
    identity: ClassVar[Any] = None
    temporaries: ClassVar[tuple[float, float]] = (10.5, 1.0)

    common: Annotated[Fraction, Doc("share of the directions that belong to the common space")] = 0.8
    rank: Annotated[PositiveInt | None, Doc("rank of each expert, where they are adapters; none: measured")] = None

    def update(self, group: Group) -> Tensor:
        """Split the rank into common and specific directions, collect both, flatten."""
        shared = common_factors(group, self.rank)
        room, tasks = shared.s.numel(), group.count
        specific = round((room - int(room * self.common)) / tasks)  # to even on a half, as the authors
        shared = shared.top(max(room - specific * tasks, 0))
        u, s, vh = [shared.u], [shared.s], [shared.vh]
        for delta in weighted_deltas(group) if specific else ():
            own = group.factor(delta - shared.u @ (shared.u.mT @ delta))
            own = own.top(min(specific, own.rank_above(noise(group)))).compact()
            u, s, vh = [*u, own.u], [*s, own.s], [*vh, own.vh]
        values = torch.cat(s)
        flat = values.mean() if values.numel() else 0.0
        return (polar(torch.cat(u, dim=1)) @ polar(torch.cat(vh))) * flat
