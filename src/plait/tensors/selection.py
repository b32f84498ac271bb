"""Exact order statistics of magnitudes by counting, in constant memory, without sorting.

The bit pattern of a non-negative float32 grows with its value. Counting the upper 16 of its 31 bits over all blocks
finds the bin that holds the wanted rank; counting the lower 15 bits inside that bin finds the value itself. Two
counting rounds therefore give the exact threshold of a vector of any length, and counts of blocks add up in any order.
Magnitudes of float64 tensors are compared as float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from plait.tensors.summaries import deferrable, rowwise

__all__ = [
    "Counts",
    "Rank",
    "at_least",
    "count_coarse",
    "count_fine",
    "kth_largest",
    "locate",
    "magnitude_bits",
    "row_threshold",
]

_LOW = 15
_LOW_MASK = (1 << _LOW) - 1


def magnitude_bits(values: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Bit pattern of |x| as float32: integers in the order of the magnitudes."""
    return values.abs().to(torch.float32).view(torch.int32)


@dataclass(frozen=True, eq=False)
class Counts:
    """How many magnitudes fell into each bin; addition merges the counts of two sets of elements."""

    bins: Int[Tensor, " bins"]

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.bins + other.bins)

    @property
    def total(self) -> int:
        """Number of elements counted."""
        return int(self.bins.sum())


@dataclass(frozen=True)
class Rank:
    """The coarse bin in which the `rank`-th largest magnitude lies, and its rank within that bin (from 1)."""

    bin: int
    rank: int


@deferrable
def count_coarse(values: Float[Tensor, "*n"]) -> Counts:
    """Count the upper 16 bits of the magnitudes."""
    bits = magnitude_bits(values).reshape(-1)
    return Counts(torch.bincount(bits >> _LOW, minlength=1 << (31 - _LOW)))


@deferrable
def count_fine(values: Float[Tensor, "*n"], bin: int) -> Counts:
    """Count the lower 15 bits of the magnitudes inside one coarse bin."""
    bits = magnitude_bits(values).reshape(-1)
    inside = bits[(bits >> _LOW) == bin] & _LOW_MASK
    return Counts(torch.bincount(inside, minlength=1 << _LOW))


def locate(counts: Counts, rank: int) -> Rank:
    """Find the bin of the `rank`-th largest element, 1 ≤ rank ≤ total."""
    above = counts.bins.flip(0).cumsum(0)
    index = int(torch.searchsorted(above, torch.tensor(rank, device=above.device)))
    before = int(above[index - 1]) if index else 0
    return Rank(counts.bins.numel() - 1 - index, rank - before)


def kth_largest(coarse: Rank, fine: Counts) -> float:
    """The magnitude at the wanted rank, exactly."""
    bits = (coarse.bin << _LOW) | locate(fine, coarse.rank).bin
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def at_least(values: Float[Tensor, "*n"], threshold: float) -> Bool[Tensor, "*n"]:
    """|x| ≥ threshold, compared in float32; entries that equal the threshold are kept."""
    return values.abs().to(torch.float32) >= threshold


@rowwise("row_threshold")
def row_threshold(values: Float[Tensor, "rows n"], rank: int) -> Float[Tensor, "rows 1"]:
    """The `rank`-th largest magnitude of every row, 1 ≤ rank ≤ n."""
    return values.abs().to(torch.float32).topk(rank, dim=-1).values[..., -1:]
