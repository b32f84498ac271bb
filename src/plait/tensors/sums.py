"""Sums that come out the same whatever the order, the blocks or the threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SEGMENT", "Each", "ExactSum", "dot", "norm1", "norm2_squared", "segment_sums"]

#: Elements added up in float64 before the exact accumulation; blocks are whole multiples of it.
SEGMENT = 1 << 16
_SCALE = 1074  # every float64 is an integer multiple of 2^-1074


@dataclass(frozen=True)
class ExactSum:
    """A sum of float64 numbers without rounding: an integer count of 2^-1074, so that `+` is associative."""

    units: int = 0

    @classmethod
    def of(cls, *values: float) -> ExactSum:
        """Add finite numbers exactly."""
        total = 0
        for value in values:
            numerator, denominator = float(value).as_integer_ratio()
            total += numerator * ((1 << _SCALE) // denominator)
        return cls(total)

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.units + other.units)

    def __float__(self) -> float:
        return self.units / (1 << _SCALE)


@dataclass(frozen=True)
class Each:
    """One summary per expert; addition goes item by item."""

    items: tuple[Any, ...]

    def __add__(self, other: Each) -> Each:
        return Each(tuple(a + b for a, b in zip(self.items, other.items, strict=True)))

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def segment_sums(values: Float[Tensor, "..."], segment: int = SEGMENT) -> ExactSum:
    """Add up all elements: float64 within fixed segments, exactly between them."""
    flat = values.reshape(-1)
    sums = [float(flat[i : i + segment].sum(dtype=torch.float64)) for i in range(0, flat.numel(), segment)]
    return ExactSum.of(*sums)


def dot(a: Float[Tensor, "..."], b: Float[Tensor, "..."], segment: int = SEGMENT) -> ExactSum:
    """⟨a, b⟩ over all elements: float64 within fixed segments, exactly between them."""
    x, y = a.reshape(-1), b.reshape(-1)
    parts = range(0, x.numel(), segment)
    return ExactSum.of(*(float(torch.dot(x[i : i + segment].double(), y[i : i + segment].double())) for i in parts))


def norm2_squared(values: Float[Tensor, "..."]) -> ExactSum:
    """‖x‖₂² over all elements."""
    return dot(values, values)


def norm1(values: Float[Tensor, "..."]) -> ExactSum:
    """‖x‖₁ over all elements."""
    return segment_sums(values.abs())
