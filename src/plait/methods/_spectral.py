"""Which tensors get a spectral step, and what happens to the rest: one policy for every spectral method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Combiner, Group, Subject, Unit
from plait.methods._parameters import Doc, Real
from plait.tensors.consensus import weighted_sum
from plait.tensors.lowrank import LowRank, concatenate
from plait.tensors.spectral import SVD, rounding_floor
from plait.tensors.streams import Stream
from plait.tensors.subspaces import Subspaces, stack

__all__ = [
    "Plain",
    "SpectralCombiner",
    "Treatment",
    "noise",
    "plain",
    "rank_share",
    "square_arrays",
    "squared_norms",
    "stacked",
    "summed",
    "top_factors",
    "weighted_deltas",
]

Plain = Literal["mean", "sum", "base"]
Treatment = Literal["spectral", "mean", "sum", "base"]


@dataclass(frozen=True, kw_only=True)
class SpectralCombiner(Combiner, ABC):
    """A combiner with a matrix step: θ = θ₀ + λ · update, the paper's on matrices and an average elsewhere.

    Matrices are the tensors of exactly two dimensions (not biases, norms, convolutions, fused stacks of experts).
    Authors of vision methods treat the embeddings and the head as matrices too; authors of language-model methods
    leave them out, because a factorisation of 150k × 4096 costs minutes and gigabytes and its rows are tokens. The
    default is theirs: mean; `spectral` is the other by name.
    """

    cost: ClassVar[Any] = "spectral"
    temporaries: ClassVar[tuple[float, float]] = (0.5, 0.0)
    #: matrices of the shorter side × the shorter side at the peak, one in float64 counting twice
    grams: ClassVar[float] = 10.0
    squares: ClassVar[float] = 0.0

    lambda_: Annotated[Real, Doc("scale of the merged task vector, of every tensor")] = 1.0
    embeddings: Annotated[Treatment, Doc("how embedding matrices merge; vision authors: spectral")] = "mean"
    head: Annotated[Treatment, Doc("how the output head's matrix merges; vision authors: spectral")] = "mean"
    others: Annotated[Plain, Doc("how tensors that are no matrices merge")] = "mean"

    def treatment(self, subject: Subject) -> Treatment:
        """What happens to one tensor."""
        if len(subject.shape) != 2 or not subject.numel:
            return self.others
        return {"embedding": self.embeddings, "head": self.head}.get(subject.role.kind, "spectral")

    def unit(self, subject: Subject) -> Unit:
        """Matrices are seen whole; everything else goes in blocks."""
        return "tensor" if self.treatment(subject) == "spectral" else "element"

    def arrays(self, subject: Subject, experts: int) -> float:
        """Arrays of the matrix's size, and what is square in its shorter side or in its inputs."""
        if self.treatment(subject) != "spectral":
            return 4.0 + experts
        return square_arrays(subject, experts, self.temporaries, self.grams, self.squares)

    @abstractmethod
    def update(self, group: Group) -> Tensor:
        """Return the merged task vector of one matrix, in memory that the caller may overwrite."""

    def merge(self, group: Group) -> Tensor:
        """Add the merged task vector to the base."""
        treatment = self.treatment(group.subject)
        if treatment != "spectral":
            return group.origin + self.lambda_ * plain(group, treatment)
        return self.update(group).mul_(self.lambda_).add_(group.origin)

    #: whether the merged task vector of a matrix comes as factors: `update_low_rank`
    by_factors: ClassVar[bool] = False

    def update_low_rank(self, group: Group) -> LowRank:
        """Return the merged task vector of one matrix by its factors."""
        raise NotImplementedError(f"{self.name} makes no factors")

    def factored(self, subject: Subject) -> bool:
        """Where the update is, and where tensors are only averaged."""
        return self.treatment(subject) != "spectral" or self.by_factors

    def merge_low_rank(self, group: Group) -> LowRank:
        """The merged change by its factors."""
        assert group.low_rank is not None
        treatment = self.treatment(group.subject)
        if treatment == "spectral":
            return self.update_low_rank(group).scaled(self.lambda_)
        share = {"mean": 1.0 / group.count, "sum": 1.0, "base": 0.0}[treatment]
        return concatenate(group.low_rank, [self.lambda_ * share * weight for weight in group.weights])


def square_arrays(
    subject: Subject, experts: int, temporaries: tuple[float, float], grams: float, squares: float
) -> float:
    """Add up a + b · experts arrays of an (m, n) matrix's size, `grams` of min(m, n)² and `squares` of n² numbers."""
    shorter, inputs = min(subject.shape), subject.shape[1]
    fixed, each = temporaries
    return fixed + each * experts + (grams * shorter * shorter + squares * inputs * inputs) / subject.numel


def plain(group: Group, treatment: Treatment) -> Tensor:
    """Mean or sum of the weighted deltas, or none of them."""
    if treatment == "base":
        return torch.zeros_like(group.origin)
    total = weighted_sum(group.deltas, group.weights)
    return total / group.count if treatment == "mean" else total


def weighted_deltas(group: Group) -> Stream:
    """wᵢτᵢ, each made anew at every look."""
    deltas, weights = group.deltas, group.weights
    if isinstance(deltas, Stream):
        return Stream(len(deltas), lambda i: deltas[i].mul_(weights[i]) if weights[i] != 1.0 else deltas[i])
    return Stream(len(deltas), lambda i: deltas[i] * weights[i])


def summed(deltas: Sequence[Tensor]) -> Tensor:
    """Σ τᵢ in new memory, looking at one at a time."""
    total = deltas[0].clone() if not isinstance(deltas, Stream) else deltas[0]
    for i in range(1, len(deltas)):
        total.add_(deltas[i])
    return total


def squared_norms(deltas: Sequence[Tensor]) -> list[float]:
    """‖τᵢ‖²_F, added up in float64, looking at one at a time."""
    return [float(torch.linalg.vector_norm(deltas[i], dtype=torch.float64)) ** 2 for i in range(len(deltas))]


def noise(group: Group) -> float:
    """Singular values up to this are rounding in a single delta; an adapter's deltas have none."""
    return 0.0 if group.exact else rounding_floor(group.origin)


def rank_share(group: Group) -> int:
    """⌊min(m, n) / T⌋, at least 1: what each of T experts may keep so that all fit into one matrix."""
    return max(1, min(group.origin.shape) // group.count)


def stacked(group: Group, ranks: Sequence[int]) -> Subspaces:
    """The largest triplets of all wᵢτᵢ side by side: `ranks[i]` of each, but none that is only rounding."""
    room = min(group.origin.shape)
    return stack(top_factors(group, ranks), sum(min(rank, room) for rank in ranks))


def top_factors(group: Group, ranks: Sequence[int]) -> Iterator[SVD]:
    """The largest triplets of each wᵢτᵢ in turn: `ranks[i]` of them, but none that is only rounding."""
    floor, deltas = noise(group), group.deltas
    if group.low_rank is not None:
        for i, (factors, rank) in enumerate(zip(group.low_rank, ranks, strict=True)):
            triplets = factors.svd().top(rank).scaled(group.weights[i])
            yield SVD(*(part.to(factors.b.dtype) for part in triplets))
        return
    for i, rank in enumerate(ranks):
        factors = group.factor(deltas[i])
        part = factors.top(min(rank, factors.rank_above(floor))).scaled(group.weights[i])
        del factors  # a delta and its vectors: not beside those of the next one
        yield part
        del part
