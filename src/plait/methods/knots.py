"""KnOTS: express all experts' changes in the left singular vectors of all of them together, and merge there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from plait.methods._contract import Group, Paper, Scope, Subject
from plait.methods._core import Inner, merge_cores, trim_whole
from plait.methods._parameters import Density, Doc, NonNegative
from plait.methods._spectral import SpectralCombiner, weighted_deltas
from plait.methods._trim import ROUNDS, survey_thresholds, thresholds, trim
from plait.tensors.lowrank import LowRank, common_basis
from plait.tensors.subspaces import common_columns

__all__ = ["Knots"]


@dataclass(frozen=True, kw_only=True)
class Knots(SpectralCombiner):
    """Tie the experts' task vectors to one basis per matrix and merge their coordinates.

    [τ₁ … τ_T] = U Σ [V₁ … V_T], with singular values above `cutoff`; Yᵢ = Σ Vᵢ = Uᵀτᵢ;
    θ = θ₀ + λ · U merge(Y₁, …, Y_T).
    Inside, TIES trims each expert to the `density` largest coordinates over the whole model (`scope: tensor`: of each
    matrix), elects signs by summed values and averages those who agree; a mean or a sum is the same as without KnOTS.

    The authors' λ is 0.6 or 0.5. U comes from the m × m Gram matrix, so a wide concatenation costs nothing extra; with
    `scope: model` it is needed in every counting round. Weights scale the deltas. The Core Space authors' version of
    KnOTS is `scope: tensor, coordinates: whitened`: it merges Vᵢ and multiplies by U Σ.

    Paper: Stoica et al., "Model Merging with SVD to Tie the KnOTS", ICLR 2025, arXiv 2410.19735.
    """

    name: ClassVar[str] = "knots"
    summary: ClassVar[str] = "TIES (or another merge) in the singular basis that all experts share"
    formula: ClassVar[str] = "θ₀ + λ · U merge(Uᵀτᵢ), U of [τ₁ … τ_T]"
    paper: ClassVar[Paper | None] = Paper(
        "Model Merging with SVD to Tie the KnOTS", "Stoica et al.", 2025, "2410.19735", "gstoica27/KnOTS"
    )
    identity: ClassVar[Any] = {"density": 1.0}
    by_factors: ClassVar[bool] = True
    temporaries: ClassVar[tuple[float, float]] = (8.0, 0.0)
    grams: ClassVar[float] = 0.0

    inner: Annotated[Inner, Doc("how coordinates merge")] = "ties"
    density: Annotated[Density, Doc("fraction of coordinates each expert keeps, for ties")] = 0.2
    scope: Annotated[Literal["model", "tensor"], Doc("what the kept fraction is counted over")] = "model"
    coordinates: Annotated[Literal["scaled", "whitened"], Doc("merge Σ Vᵢ, or Vᵢ without singular values")] = "scaled"
    cutoff: Annotated[NonNegative, Doc("singular values up to this are dropped")] = 1e-5

    @property
    def rounds(self) -> int:
        """Two counting rounds for the thresholds over the model."""
        return ROUNDS if self.inner == "ties" and self.scope == "model" and self.density < 1 else 0

    @property
    def survey_scope(self) -> Scope:
        """The trimming scope; matrices counted one by one are whole in memory and need no rounds."""
        return "model"

    @property
    def constant(self) -> frozenset[str]:
        """One threshold per expert and scope, hence one density."""
        return frozenset({"density"})

    def arrays(self, subject: Subject, experts: int) -> float:
        """The Gram matrix is square in the outputs, or in all experts' inputs where they are fewer."""
        if self.treatment(subject) != "spectral":
            return super().arrays(subject, experts)
        side = min(subject.shape[0], subject.shape[1] * experts)
        return super().arrays(subject, experts) + 7.0 * side * side / subject.numel

    def _coordinates(self, group: Group) -> tuple[Tensor, tuple[Tensor, ...]]:
        if group.low_rank is not None:
            basis, values, cores = common_basis(group.low_rank, group.weights, self.cutoff)
            if self.coordinates == "scaled":
                return basis, cores
            return basis * values, tuple(core / values[:, None] for core in cores)
        deltas = weighted_deltas(group)
        basis, values = common_columns(deltas, self.cutoff)
        cores = tuple(basis.mT @ deltas[i] for i in range(group.count))
        if self.coordinates == "scaled":
            return basis, cores
        return basis.mul_(values), tuple(core.div_(values[:, None]) for core in cores)

    def survey(self, group: Group) -> Any:
        """Count the magnitudes of the coordinates; tensors that are no matrices take no part."""
        if self.treatment(group.subject) == "spectral":
            counted = self._coordinates(group)[1]
        else:
            counted = tuple(delta[:0] for delta in group.deltas)
        return survey_thresholds(counted, group.facts, [self.density] * group.count, "inclusive")

    def update(self, group: Group) -> Tensor:
        """Change the basis, trim, merge, change back."""
        return self._factors(group).dense()

    def update_low_rank(self, group: Group) -> LowRank:
        """The same, not changed back."""
        return self._factors(group)

    def _factors(self, group: Group) -> LowRank:
        basis, cores = self._coordinates(group)
        if self.rounds:
            cores = trim(cores, thresholds(group.facts, [self.density] * group.count, "inclusive"))
        elif self.inner == "ties":
            cores = tuple(trim_whole(core, self.density) for core in cores)
        return LowRank(basis, merge_cores(cores, self.inner))
