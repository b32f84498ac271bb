"""KnOTS: express all experts' changes in the left singular vectors of all of them together, and merge there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from plait.methods._contract import Group, Paper, Scope, Subject
from plait.methods._core import InnerMerge, merge_cores, trim_below, trim_whole
from plait.methods._parameters import Density, Doc, NonNegative
from plait.methods._spectral import SpectralCombiner, weighted_deltas
from plait.methods._trim import ROUNDS, survey_thresholds, thresholds
from plait.tensors.lowrank import LowRank, common_basis
from plait.tensors.streams import Stream
from plait.tensors.tied import Tied, tie

__all__ = ["Knots"]


@dataclass(frozen=True, kw_only=True)
class Knots(InnerMerge, SpectralCombiner):
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

    inner: Annotated[
        str, Doc("how coordinates merge: ties, mean, sum, tsv, or any other method or chain by its name")
    ] = "ties"
    density: Annotated[Density, Doc("fraction of coordinates each expert keeps, for ties and others")] = 0.2
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
        # the matrix in float64 and its eigen-decomposition; afterwards the basis, and sums over the coordinates
        square = side * side / subject.numel
        inside = self.arrays_inside(subject, (side, subject.shape[1]), experts)
        return max(6.0 * square, 2.0 * square + 2.5) + inside

    def _tied(self, group: Group) -> tuple[Tied, Stream]:
        """The common basis, and the coordinates of one expert at a time in it."""
        tied = tie(weighted_deltas(group), self.cutoff)
        cores = Stream(group.count, tied.coordinates)
        return tied, cores if self.coordinates == "scaled" else cores.map(lambda core: core.div_(tied.values[:, None]))

    def _low_rank(self, group: Group) -> tuple[Tensor, Stream]:
        """The same for adapters, from their factors; without singular values in the coordinates, the basis has them."""
        assert group.low_rank is not None
        basis, values, cores = common_basis(group.low_rank, group.weights, self.cutoff)
        if self.coordinates == "scaled":
            return basis, Stream(group.count, lambda i: cores[i].clone())
        return basis * values, Stream(group.count, lambda i: cores[i] / values[:, None])

    def survey(self, group: Group) -> Any:
        """Count the magnitudes of the coordinates; tensors that are no matrices take no part."""
        if self.treatment(group.subject) == "spectral":
            counted: Any = (self._tied if group.low_rank is None else self._low_rank)(group)[1]
        else:
            counted = tuple(delta[:0] for delta in group.deltas)
        return survey_thresholds(counted, group.facts, [self.density] * group.count, "inclusive")

    def update(self, group: Group) -> Tensor:
        """Change the basis, trim, merge, change back."""
        if group.low_rank is not None:
            return self.update_low_rank(group).dense()
        tied, cores = self._tied(group)
        merged = merge_cores(self._trimmed(group, cores), self.inner, group, self.density)
        return tied.expand(merged if self.coordinates == "scaled" else merged.mul_(tied.values[:, None]))

    def update_low_rank(self, group: Group) -> LowRank:
        """The same for adapters, not changed back."""
        basis, cores = self._low_rank(group)
        return LowRank(basis, merge_cores(self._trimmed(group, cores), self.inner, group, self.density))

    def _trimmed(self, group: Group, cores: Stream) -> Stream:
        if self.rounds:
            limits = thresholds(group.facts, [self.density] * group.count, "inclusive")
            return Stream(group.count, lambda i: trim_below(cores[i], limits[i]))
        return cores.map(lambda core: trim_whole(core, self.density)) if self.inner == "ties" else cores
