"""OrthoMerge: merge the rotations of the experts, and what rotations cannot explain, apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Subject, Unit
from plait.methods._parameters import Doc, Fixed, PositiveInt, Real
from plait.tensors.consensus import weighted_sum
from plait.tensors.rotation import cayley, closest_rotation, mean_skew, rotation_of
from plait.tensors.spectral import combine_subspaces, rounding_floor

__all__ = ["OrthoMerge"]


@dataclass(frozen=True, kw_only=True)
class OrthoMerge(Combiner):
    """Split every expert into a rotation of the base's inputs and a residual, and merge both.

    Rᵢ = the rotation for which W₀Rᵢ is closest to the expert; Aᵢ = (Rᵢ + I)⁻¹(Rᵢ − I); A = the direction of ΣAᵢ at the
    mean length; R = (I − A)⁻¹(I + A). θ = W₀R + λ · Σ(Wᵢ − W₀Rᵢ). Tensors that are no matrices, and norms:
    θ₀ + λ · Στᵢ.

    With `rotate: conflicting` an expert's rotation is fitted only to the rows whose update opposes the mean update,
    with `rotate: all` to all of it. λ is 1/T of the authors' five experts. `residual: tsv` merges the residuals of
    matrices by TSV-Merge and takes the mean of the rest; λ is 1 there.

    Where a weight has fewer outputs than inputs, the authors' Procrustes problem has no unique solution, and their
    result is noise. Here unseen directions stay in place; a rotation by nearly 180° is left to the residual. All of
    this runs in float64, at the cost of one n × n factorisation per expert, n the number of inputs: a matrix with more
    than `widest` inputs is not rotated.

    Paper: Yang et al., "Orthogonal Model Merging", 2026, arXiv 2602.05943.
    """

    name: ClassVar[str] = "orthomerge"
    summary: ClassVar[str] = "merge the experts' rotations on the orthogonal group, and the residuals linearly"
    formula: ClassVar[str] = "W₀R + λ · Σ(Wᵢ − W₀Rᵢ)"
    paper: ClassVar[Paper | None] = Paper(
        "Orthogonal Model Merging", "Yang et al.", 2026, "2602.05943", "Sphere-AI-Lab/OrthoMerge"
    )
    weighted: ClassVar[bool] = False
    identity: ClassVar[Any] = {"lambda_": 1.0}
    cost: ClassVar[Any] = "spectral"

    lambda_: Annotated[Real, Doc("scale of the merged residuals; 1 for residual: tsv")] = 0.2
    rotate: Annotated[Literal["conflicting", "all"], Doc("rows that an expert's rotation is fitted to")] = "conflicting"
    residual: Annotated[Literal["sum", "tsv"], Doc("how the residuals are merged")] = "sum"
    widest: Annotated[PositiveInt, Fixed(), Doc("inputs of the widest matrix that is rotated")] = 16384

    def _rotates(self, subject: Subject) -> bool:
        return (
            len(subject.shape) == 2
            and bool(subject.numel)
            and subject.role.kind != "norm"
            and subject.shape[1] <= self.widest
        )

    def arrays(self, subject: Subject, experts: int) -> float:
        """A few arrays of the tensor's own shape, and many rotations, square in the input dimension."""
        rotations = subject.shape[1] / max(subject.shape[0], 1) if len(subject.shape) == 2 else 0.0
        return 11.0 + experts + rotations * (5.0 + 3.0 * experts)

    def unit(self, subject: Subject) -> Unit:
        """Matrices are seen whole; everything else goes in blocks."""
        return "tensor" if self._rotates(subject) or (self.residual == "tsv" and len(subject.shape) == 2) else "element"

    def merge(self, group: Group) -> Tensor:
        """Merge rotations and residuals."""
        if not self._rotates(group.subject):
            return group.origin + self.lambda_ * self._residuals(group, group.deltas)
        base = group.origin.double()
        skews = [self._skew(group, base, target) for target in self._targets(group, base)]
        turned = base @ rotation_of(mean_skew(skews))
        residuals = [
            (expert.double() - base @ rotation_of(skew)).to(expert.dtype)
            for expert, skew in zip(group.experts, skews, strict=True)
        ]
        return (turned + self.lambda_ * self._residuals(group, residuals).double()).to(group.origin.dtype)

    def _targets(self, group: Group, base: Float[Tensor, "m n"]) -> list[Float[Tensor, "m n"] | None]:
        """What each rotation is fitted to; None where an expert conflicts nowhere."""
        if self.rotate == "all":
            return [expert.double() for expert in group.experts]
        mean = weighted_sum(group.deltas, (1.0 / group.count,) * group.count).double()
        targets: list[Float[Tensor, "m n"] | None] = []
        for delta in group.deltas:
            conflicts = torch.linalg.vecdot(delta.double(), mean) < 0
            targets.append(base + delta.double() * conflicts[:, None] if bool(conflicts.any()) else None)
        return targets

    def _skew(
        self, group: Group, base: Float[Tensor, "m n"], target: Float[Tensor, "m n"] | None
    ) -> Float[Tensor, "n n"]:
        rotation = None if target is None else closest_rotation(group.factor(base.mT @ target))
        return cayley(rotation) if rotation is not None else base.new_zeros(base.shape[1], base.shape[1])

    def _residuals(self, group: Group, residuals: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """Sum of the residuals; by TSV-Merge, the mean where they are no matrices."""
        if self.residual == "sum":
            return weighted_sum(residuals, (1.0,) * group.count)
        if len(group.subject.shape) != 2:
            return weighted_sum(residuals, (1.0 / group.count,) * group.count)
        floor = rounding_floor(group.origin)
        kept = max(1, min(group.origin.shape) // group.count)
        factors = [group.factor(residual) for residual in residuals]
        return combine_subspaces([f.top(min(kept, f.rank_above(floor))) for f in factors])
