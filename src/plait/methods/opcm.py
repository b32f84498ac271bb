"""OPCM: merge a stream of experts, each projected away from what the merged model already does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from plait.methods._contract import Group, Paper, Scope
from plait.methods._parameters import Doc, Fraction
from plait.methods._spectral import Plain, SpectralCombiner, Treatment, noise, plain, weighted_deltas
from plait.tensors.factors import Factors
from plait.tensors.sums import Each, norm2_squared

__all__ = ["Opcm"]


@dataclass(frozen=True, kw_only=True)
class Opcm(SpectralCombiner):
    """Add the experts one after another, keeping of each only what is orthogonal to the leading merged directions.

    P = τ₁; for each further expert, with P = U diag(s) V: C = Uᵀ τᵢ Vᵀ, its leading q × q block and its diagonal set to
    zero, q = how many singular values hold the share `alpha` of Σs; P ← P + U C V (+ what lies outside U and V). Other
    tensors are added as they are. At the end θ = θ₀ + P · n̄/‖P‖ with n̄ the experts' mean norm over the whole model.

    The order of the experts is the recipe's (the authors shuffle it). `alpha: 1` removes all that lies inside the span
    of P. The diagonal is removed within the numerical rank of P only: beyond it the basis is arbitrary. The authors
    project the head too (`head: spectral`). Weights scale the deltas.

    Paper: Tang et al., "Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model
    Merging", 2025, arXiv 2501.09522.
    """

    name: ClassVar[str] = "opcm"
    summary: ClassVar[str] = "sequential merge by orthogonal projection, with the experts' mean norm"
    formula: ClassVar[str] = "P ← P + projected τᵢ; θ₀ + P · mean‖τᵢ‖ / ‖P‖"
    paper: ClassVar[Paper | None] = Paper(
        "Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model Merging",
        "Tang et al.",
        2025,
        "2501.09522",
        "tanganke/opcm",
    )
    symmetric: ClassVar[bool] = False
    identity: ClassVar[Any] = {}
    temporaries: ClassVar[tuple[float, float]] = (1.5, 0.0)

    alpha: Annotated[Fraction, Doc("share of the merged spectrum whose directions are protected")] = 0.5
    embeddings: Annotated[Treatment, Doc("how embedding matrices merge")] = "sum"
    head: Annotated[Treatment, Doc("how the output head's matrix merges; the authors': spectral")] = "sum"
    others: Annotated[Plain, Doc("how tensors that are no matrices merge")] = "sum"

    @property
    def rounds(self) -> int:
        """One round for the norms over the model.

        The authors rescale P to n̄ after every step and undo it in the next: only the last rescaling remains, and the
        projection does not see the scale of P. One round at the end therefore suffices.
        """
        return 1

    @property
    def survey_scope(self) -> Scope:
        """Norms are the whole model's."""
        return "model"

    def survey(self, group: Group) -> Each:
        """Squared norms of every weighted delta and of the accumulated one."""
        deltas = weighted_deltas(group)
        norms = Each(tuple(norm2_squared(deltas[i]) for i in range(group.count)))
        return Each((norms, norm2_squared(self._sum(group))))

    def _sum(self, group: Group) -> Tensor:
        treatment = self.treatment(group.subject)
        return self.update(group) if treatment == "spectral" else plain(group, treatment)

    def update(self, group: Group) -> Tensor:
        """Accumulate the projected deltas."""
        deltas, floor = weighted_deltas(group), noise(group)
        merged = deltas[0]
        for i in range(1, group.count):
            factors = group.factor(merged)  # before the delta is there
            merged.add_(self._projected(factors, floor, deltas[i]))
            del factors
        return merged

    def _projected(self, factors: Factors, floor: float, delta: Tensor) -> Tensor:
        """Take out of a delta what it says along the directions of the merged one that are protected."""
        rank = factors.rank_above(floor)
        if not rank:
            return delta
        s = factors.s[:rank]
        shares = s.cumsum(0) / s.sum()
        protected = rank if self.alpha >= 1 else int((shares <= self.alpha).sum())
        core = factors.core(delta, rank)  # the same masks hold for its transpose
        removed = core.diagonal().diag()
        removed[:protected, :protected] = core[:protected, :protected]
        return factors.expand(removed).neg_().add_(delta)

    def merge(self, group: Group) -> Tensor:
        """Rescale the accumulated delta to the experts' mean norm."""
        norms, merged = group.facts[0].items
        size = math.sqrt(float(merged))
        mean = sum(math.sqrt(float(square)) for square in norms.items) / group.count
        factor = mean / size if size > 0 else 1.0
        return self._sum(group).mul_(self.lambda_ * factor).add_(group.origin)
