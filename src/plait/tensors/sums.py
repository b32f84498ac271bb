"""Sums that come out the same whatever the order, the blocks or the threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plait.tensors.summaries import Deferred, deferrable

__all__ = ["LANES", "SEGMENT", "Each", "ExactSum", "count", "dot", "norm1", "norm2_squared", "segment_sums"]

#: Elements added up in float64 before the exact accumulation; blocks are whole multiples of it.
SEGMENT = 1 << 16
#: numbers in a row of a segment, added up side by side
LANES = 512
_BATCH = 4  # segments that are converted to float64 at once
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


def _sums(values: Float[Tensor, " n"], other: Float[Tensor, " n"] | None = None) -> ExactSum:
    """Σx, or Σxy: float64 in an order of its own within each segment, exactly between segments.

    A segment is a table of rows of LANES numbers. Rows are added to each other in order, then the lanes of their sum by
    halves: an order that any vector unit can keep, so that a compiled loop gives the same bits.
    """
    rows, count = SEGMENT // LANES, values.numel()
    found: list[float] = []
    for start in range(0, count, _BATCH * SEGMENT):
        wide = values[start : start + _BATCH * SEGMENT].double()
        if other is not None:
            wide = wide * other[start : start + _BATCH * SEGMENT].double()
        segments = -(-wide.numel() // SEGMENT)
        if wide.numel() <= LANES:
            table = torch.nn.functional.pad(wide, (0, LANES - wide.numel())).view(1, 1, LANES)
        else:
            table = torch.nn.functional.pad(wide, (0, segments * SEGMENT - wide.numel())).view(segments, rows, LANES)
        lanes = table[:, 0].clone()
        for row in range(1, table.shape[1]):
            lanes += table[:, row]
        width = LANES // 2
        while width:
            lanes = lanes[:, :width] + lanes[:, width : 2 * width]
            width //= 2
        found += lanes.reshape(-1).tolist()
    return ExactSum.of(*found)


@deferrable
def segment_sums(values: Float[Tensor, "..."]) -> ExactSum:
    """Add up all elements: float64 within fixed segments, exactly between them."""
    return _sums(values.reshape(-1))


@deferrable
def dot(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> ExactSum:
    """⟨a, b⟩ over all elements: float64 within fixed segments, exactly between them."""
    return _sums(a.reshape(-1), b.reshape(-1))


@deferrable
def count(mask: Bool[Tensor, "..."]) -> int:
    """Number of elements that are true."""
    return int(mask.sum())


def norm2_squared(values: Float[Tensor, "..."]) -> ExactSum | Deferred:
    """‖x‖₂² over all elements."""
    return dot(values, values)


def norm1(values: Float[Tensor, "..."]) -> ExactSum | Deferred:
    """‖x‖₁ over all elements."""
    return segment_sums(values.abs())
