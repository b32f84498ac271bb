"""Which tensors get a spectral step, and what happens to the rest: one policy for every spectral method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Combiner, Group, Subject, Unit
from plait.methods._parameters import Doc, Real
from plait.tensors.consensus import weighted_sum
from plait.tensors.spectral import SVD, rounding_floor

__all__ = [
    "Plain",
    "SpectralCombiner",
    "Treatment",
    "noise",
    "plain",
    "rank_share",
    "squared_norms",
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
    temporaries: ClassVar[tuple[float, float]] = (12.0, 1.0)

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

    @abstractmethod
    def update(self, group: Group) -> Tensor:
        """Return the merged task vector of one matrix."""

    def merge(self, group: Group) -> Tensor:
        """Add the merged task vector to the base."""
        treatment = self.treatment(group.subject)
        merged = self.update(group) if treatment == "spectral" else plain(group, treatment)
        return group.origin + self.lambda_ * merged


def plain(group: Group, treatment: Treatment) -> Tensor:
    """Mean or sum of the weighted deltas, or none of them."""
    if treatment == "base":
        return torch.zeros_like(group.deltas[0])
    total = weighted_sum(group.deltas, group.weights)
    return total / group.count if treatment == "mean" else total


def weighted_deltas(group: Group) -> tuple[Tensor, ...]:
    """wᵢτᵢ."""
    pairs = zip(group.deltas, group.weights, strict=True)
    return tuple(delta if weight == 1.0 else delta * weight for delta, weight in pairs)


def squared_norms(deltas: Sequence[Tensor]) -> list[float]:
    """‖τᵢ‖²_F, added up in float64."""
    return [float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2 for delta in deltas]


def noise(group: Group) -> float:
    """Singular values up to this are rounding in a single delta."""
    return rounding_floor(group.origin)


def rank_share(group: Group) -> int:
    """⌊min(m, n) / T⌋, at least 1: what each of T experts may keep so that all fit into one matrix."""
    return max(1, min(group.origin.shape) // group.count)


def top_factors(group: Group, ranks: Sequence[int]) -> list[SVD]:
    """The largest triplets of each wᵢτᵢ: `ranks[i]` of them, but none that is only rounding."""
    floor = noise(group)
    parts = []
    for delta, weight, rank in zip(group.deltas, group.weights, ranks, strict=True):
        factors = group.factor(delta)
        parts.append(factors.top(min(rank, factors.rank_above(floor))).compact().scaled(weight))
        del factors  # T full pairs of U and V at once would be most of the memory
    return parts
