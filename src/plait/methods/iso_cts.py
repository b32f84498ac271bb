"""Iso-CTS: Iso-C with room for directions that single tasks need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._parameters import Doc, Fraction, PositiveInt
from plait.methods._spectral import SpectralCombiner, noise, weighted_deltas
from plait.methods.iso_c import IsoC, common_factors
from plait.tensors.products import panels
from plait.tensors.spectral import SVD
from plait.tensors.subspaces import combine_subspaces, stack

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

    common: Annotated[Fraction, Doc("share of the directions that belong to the common space")] = 0.8
    rank: Annotated[PositiveInt | None, Doc("rank of each expert, where they are adapters; none: measured")] = None

    def update(self, group: Group) -> Tensor:
        """Split the rank into common and specific directions, collect both, flatten."""
        factors, room = common_factors(group, self.rank)
        specific = round((room - int(room * self.common)) / group.count)  # to even on a half, as the authors
        common = max(room - specific * group.count, 0)
        shared = [factors.top(common)]
        del factors
        joined = stack(self._parts(group, shared, specific), common + specific * group.count)
        flat = float(joined.s.mean()) if joined.s.numel() else 0.0
        return combine_subspaces(joined._replace(s=torch.full_like(joined.s, flat)))

    def _parts(self, group: Group, shared: list[SVD], specific: int) -> Iterator[SVD]:
        """The common triplets, taken out of a list of one, then those of every expert off the common left vectors."""
        basis = shared[0].u
        yield shared.pop()
        deltas = weighted_deltas(group)
        for i in range(group.count if specific else 0):
            delta = deltas[i]
            for panel in panels(delta.shape[1], delta.shape[0]):
                delta[:, panel].addmm_(basis, basis.mT @ delta[:, panel], alpha=-1.0)
            own = group.factor(delta)
            part = own.top(min(specific, own.rank_above(noise(group))))
            del delta, own
            yield part
            del part
