"""DOGE: learn one correction of all task vectors that lowers their conflict, off the subspace they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper, Scope
from plait.methods._parameters import Density, Doc, NonNegative, NonNegativeInt, PositiveInt
from plait.methods._spectral import Plain, SpectralCombiner, Treatment, noise, rank_share, squared_norms
from plait.methods._trim import ROUNDS, survey_thresholds, thresholds
from plait.tensors.consensus import weighted_sum
from plait.tensors.descent import adam
from plait.tensors.selection import at_least
from plait.tensors.subspaces import leading_columns

__all__ = ["Doge"]

_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Doge(SpectralCombiner):
    """Trim the task vectors, scale each matrix to one norm, and add a learned correction.

    λᵢ = wᵢ · strength/‖τᵢ‖; Δ minimises Σⱼ Σ_rows ⟨τⱼ, τⱼ − Σλᵢτᵢ − (Σλᵢ)Δ⟩² by Adam from 0, with gradients projected
    off the ⌊r/subspace⌋ directions that the experts' leading left singular vectors share most;
    θ = θ₀ + λ · Σ λᵢ · mᵢ ⊙ (τᵢ + Δ), mᵢ = the `density` largest entries of |τᵢ| over all matrices together.

    `strength` is an absolute norm per matrix and expert: tune it, or λ, to the model. The steps of Adam are absolute
    too. The authors leave everything but the layers' matrices at the base.

    Paper: Wei et al., "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent", ICML 2025,
    arXiv 2501.01230.
    """

    name: ClassVar[str] = "doge"
    summary: ClassVar[str] = "trimmed task vectors of equal norm with a learned correction"
    formula: ClassVar[str] = "θ₀ + λ · Σ λᵢ · mᵢ ⊙ (τᵢ + Δ), λᵢ = strength/‖τᵢ‖"
    paper: ClassVar[Paper | None] = Paper(
        "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent",
        "Wei et al.",
        2025,
        "2501.01230",
        "WalkerWorldPeace/DOGE",
    )
    identity: ClassVar[Any] = None
    cost: ClassVar[Any] = "iterative"
    temporaries: ClassVar[tuple[float, float]] = (4.0, 1.0)
    grams: ClassVar[float] = 1.0

    strength: Annotated[NonNegative, Doc("norm that each expert's matrix is scaled to")] = 0.07
    density: Annotated[Density, Doc("share of all matrices' entries that each expert keeps")] = 0.3
    subspace: Annotated[PositiveInt, Doc("the shared subspace has a 1/subspace share of the directions")] = 6
    steps: Annotated[NonNegativeInt, Doc("steps of Adam; 0: no correction")] = 400
    rate: Annotated[NonNegative, Doc("learning rate: the most an entry moves in a step")] = 1e-4
    embeddings: Annotated[Treatment, Doc("how embedding matrices merge")] = "base"
    head: Annotated[Treatment, Doc("how the output head's matrix merges")] = "base"
    others: Annotated[Plain, Doc("how tensors that are no matrices merge")] = "base"

    @property
    def rounds(self) -> int:
        """Two counting rounds for the thresholds."""
        return 0 if self.density == 1.0 else ROUNDS

    @property
    def survey_scope(self) -> Scope:
        """One threshold per expert over all matrices."""
        return "model"

    @property
    def constant(self) -> frozenset[str]:
        """One threshold, hence one density."""
        return frozenset({"density"})

    def survey(self, group: Group) -> Any:
        """Count magnitudes of the matrices; other tensors take no part."""
        counted = self.treatment(group.subject) == "spectral"
        deltas = group.deltas if counted else tuple(delta[:0] for delta in group.deltas)
        return survey_thresholds(deltas, group.facts, [self.density] * group.count, "inclusive")

    def update(self, group: Group) -> Tensor:
        """Scale, learn, mask, add."""
        deltas = list(group.deltas)  # every step of the descent needs all of them
        pairs = zip(group.weights, squared_norms(deltas), strict=True)
        scales = [weight * self.strength / math.sqrt(square) if square > 0 else 0.0 for weight, square in pairs]
        correction = self._correction(group, deltas, scales) if self.steps else torch.zeros_like(deltas[0])
        limits: Sequence[float] = (0.0,) * group.count
        if self.rounds:
            limits = thresholds(group.facts, [self.density] * group.count, "inclusive")
        merged = torch.zeros_like(deltas[0])
        for delta, share, limit in zip(deltas, scales, limits, strict=True):
            merged.add_((delta + correction).mul_(at_least(delta, limit)), alpha=share)
        return merged

    def _correction(self, group: Group, deltas: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        """Descend on the rows' squared inner products, off the shared subspace."""
        reach = sum(scales)
        basis = self._shared(group, deltas)
        total = weighted_sum(deltas, scales)
        targets = [(delta * (delta - total)).sum(dim=1) for delta in deltas]  # (m,) each
        del total

        def gradient(here: Tensor) -> Tensor:
            slope = torch.zeros_like(here)
            for delta, target in zip(deltas, targets, strict=True):
                inner = target - reach * _row_products(delta, here)
                slope.addcmul_(inner[:, None], delta, value=-2.0 * reach)
            return slope.addmm_(basis, basis.mT @ slope, alpha=-1.0)

        return adam(torch.zeros_like(deltas[0]), gradient, self.steps, self.rate)

    def _shared(self, group: Group, deltas: Sequence[Tensor]) -> Tensor:
        """The directions of the output that most of the experts' leading left singular vectors point to, (m, p).

        Singular values lie close together where the subspace ends: float64 keeps rounding from turning it.
        """
        kept, floor = rank_share(group), noise(group)
        columns = []
        for delta in deltas:
            factors = group.factor(delta)
            columns.append(factors.left(min(kept, factors.rank_above(floor))))
            del factors
        joined = torch.cat(columns, dim=1)
        columns.clear()
        wanted = min(group.origin.shape) // self.subspace
        return leading_columns(joined, wanted, torch.finfo(group.origin.dtype).eps).to(group.origin.dtype)


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """⟨aᵣ, bᵣ⟩ for every row, a few rows at a time."""
    pairs = zip(a.split(_ROWS), b.split(_ROWS), strict=True)
    return torch.cat([torch.linalg.vecdot(x, y) for x, y in pairs])
