"""Methods whose inputs are adapters: they work on the factors, and mean nothing for other experts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from plait.methods._contract import Combiner, Group, Subject, Unit
from plait.tensors.consensus import weighted_sum
from plait.tensors.lowrank import LowRank, concatenate

__all__ = ["LowRankCombiner"]


@dataclass(frozen=True, kw_only=True)
class LowRankCombiner(Combiner, ABC):
    """A combiner of low-rank changes: θ = θ₀ + B A, with B and A made from the adapters' own.

    Matrices and convolutions are merged so; changes of vectors (biases) are averaged.
    """

    adapters_only: ClassVar[bool] = True
    cost: ClassVar[Any] = "spectral"
    temporaries: ClassVar[tuple[float, float]] = (2.0, 0.5)

    def unit(self, subject: Subject) -> Unit:
        """Matrices are seen whole."""
        return "tensor" if len(subject.shape) > 1 else "element"

    def factored(self, subject: Subject) -> bool:
        """Of every matrix."""
        return len(subject.shape) > 1

    @abstractmethod
    def update(self, group: Group) -> LowRank:
        """Return the merged change of one matrix by its factors."""

    def merge_low_rank(self, group: Group) -> LowRank:
        """The merged change; nothing where no adapter changes anything."""
        assert group.low_rank is not None
        if not any(part.rank for part in group.low_rank):
            return concatenate(group.low_rank, group.weights)
        return self.update(group)

    def merge(self, group: Group) -> Tensor:
        """Add the change to the base."""
        if group.low_rank is None:
            return group.origin + weighted_sum(group.deltas, group.weights) / group.count
        return group.origin + self.merge_low_rank(group).dense().view(group.subject.shape)
