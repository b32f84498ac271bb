"""OrthoMerge: merge the rotations of the experts, and what rotations cannot explain, apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Subject, Unit
from plait.methods._parameters import Doc, Fixed, PositiveInt, Real
from plait.methods._spectral import summed
from plait.tensors.rotation import SkewMean, Turn, closest_turn, moved_by
from plait.tensors.spectral import SVD, rounding_floor
from plait.tensors.streams import Stream
from plait.tensors.subspaces import combine_subspaces, stack

__all__ = ["OrthoMerge"]


@dataclass(frozen=True, kw_only=True)
class OrthoMerge(Combiner):
    """Split every expert into a rotation of the base's inputs and a residual, and merge both.

    Rᵢ = the rotation for which W₀Rᵢ is closest to the expert; Aᵢ = (Rᵢ + I)⁻¹(Rᵢ − I); A = the direction of ΣAᵢ at the
    mean length; R = (I − A)⁻¹(I + A). θ = W₀R + λ · Σ(Wᵢ − W₀Rᵢ). Tensors that are no matrices, and norms:
    θ₀ + λ · Στᵢ.

    With `rotate: conflicting` an expert's rotation is fitted only to the rows whose update opposes the mean update,
    with `rotate: all` to all of it. λ is 1/T of the authors' five experts. `residual: tsv` merges the residuals of
    matrices by TSV-Merge and takes the mean of the rest; λ is 1 there. The authors rotate embeddings and the head too,
    which takes gigabytes and minutes: `embeddings: spectral, head: spectral`. By default they merge as all that is no
    matrix does.

    Where a weight has fewer outputs than inputs, the authors' Procrustes problem has no unique solution, and their
    result is noise. Here unseen directions stay in place; a rotation by nearly 180° is left to the residual. All of
    this runs in float64, at the cost of one n × n factorisation per expert, n the number of inputs or, where that is
    smaller, of rows of the weight and of those that the rotation is fitted to: a matrix with more than `widest` inputs
    is not rotated.

    Paper: Yang et al., "Orthogonal Model Merging", 2026, arXiv 2602.05943.
    """

    name: ClassVar[str] = "orthomerge"
    summary: ClassVar[str] = "merge the experts' rotations on the orthogonal group, and the residuals linearly"
    formula: ClassVar[str] = "W₀R + λ · Σ(Wᵢ − W₀Rᵢ)"
    paper: ClassVar[Paper | None] = Paper(
        "Orthogonal Model Merging", "Yang et al.", 2026, "2602.05943", "Sphere-AI-Lab/OrthoMerge"
    )
    translates: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    identity: ClassVar[Any] = {"lambda_": 1.0}
    cost: ClassVar[Any] = "spectral"

    lambda_: Annotated[Real, Doc("scale of the merged residuals; 1 for residual: tsv")] = 0.2
    rotate: Annotated[Literal["conflicting", "all"], Doc("rows that an expert's rotation is fitted to")] = "conflicting"
    residual: Annotated[Literal["sum", "tsv"], Doc("how the residuals are merged")] = "sum"
    embeddings: Annotated[Literal["spectral", "linear"], Doc("whether embedding matrices are rotated")] = "linear"
    head: Annotated[Literal["spectral", "linear"], Doc("whether the output head's matrix is rotated")] = "linear"
    widest: Annotated[PositiveInt, Fixed(), Doc("inputs of the widest matrix that is rotated")] = 16384

    def _matrix(self, subject: Subject) -> bool:
        kinds = {"embedding": self.embeddings, "head": self.head}
        return len(subject.shape) == 2 and subject.numel > 0 and kinds.get(subject.role.kind, "spectral") == "spectral"

    def _rotates(self, subject: Subject) -> bool:
        return self._matrix(subject) and subject.role.kind != "norm" and subject.shape[1] <= self.widest

    def arrays(self, subject: Subject, experts: int) -> float:
        """A few arrays of the tensor's own shape, and rotations in float64, square in the input dimension."""
        rotations = subject.shape[1] / max(subject.shape[0], 1) if self._rotates(subject) else 0.0
        return 3.0 + 12.0 * rotations if rotations else 4.0 + experts

    def unit(self, subject: Subject) -> Unit:
        """Matrices are seen whole; everything else goes in blocks."""
        whole = self._rotates(subject) or (self.residual == "tsv" and self._matrix(subject))
        return "tensor" if whole else "element"

    def merge(self, group: Group) -> Tensor:
        """Merge rotations and residuals."""
        if not self._rotates(group.subject):
            return group.origin + self.lambda_ * self._residuals(group, group.deltas)
        skews = SkewMean(group.origin.shape[1], group.origin.device)
        merged = self._residuals(group, self._split(group, skews)).mul_(self.lambda_)
        return merged.add_(moved_by(group.origin, skews.mean(group.count))).add_(group.origin)

    def _split(self, group: Group, skews: SkewMean) -> Iterator[Tensor]:
        """Yield each expert's residual Wᵢ − W₀Rᵢ, and take note of its rotation."""
        deltas = group.deltas
        mean = summed(deltas).div_(group.count) if self.rotate == "conflicting" else None
        for i in range(group.count):
            delta = deltas[i] if isinstance(deltas, Stream) else deltas[i].clone()
            turn = self._turn(group, delta, mean)
            if turn is not None:
                delta.sub_(turn.moved(group.origin))
                skews.add(turn.skew())
            del turn
            yield delta
            del delta

    def _turn(self, group: Group, delta: Float[Tensor, "m n"], mean: Tensor | None) -> Turn | None:
        """The rotation of the base that is closest to the expert, or to its conflicting rows; None without any."""
        if mean is None:
            return closest_turn(group.origin, delta, slice(None), group.factor)
        conflicts = torch.linalg.vecdot(delta, mean) < 0
        if not bool(conflicts.any()):
            return None
        return closest_turn(group.origin, delta, conflicts, group.factor)

    def _residuals(self, group: Group, residuals: Iterable[Tensor]) -> Tensor:
        """Sum of the residuals; by TSV-Merge, the mean where they are no matrices."""
        if self.residual == "tsv" and self._matrix(group.subject):
            return combine_subspaces(stack(self._parts(group, residuals), self._kept(group) * group.count))
        total = torch.zeros_like(group.origin)
        for residual in residuals:
            total.add_(residual)
            del residual
        return total.div_(group.count) if self.residual == "tsv" else total

    def _kept(self, group: Group) -> int:
        return max(1, min(group.origin.shape) // group.count)

    def _parts(self, group: Group, residuals: Iterable[Tensor]) -> Iterator[SVD]:
        floor = rounding_floor(group.origin)
        for residual in residuals:
            factors = group.factor(residual)
            yield factors.top(min(self._kept(group), factors.rank_above(floor)))
            del factors, residual
