"""Exact order statistics of signed numbers by counting, in constant memory: see `selection` for magnitudes.

The bit pattern of a float32, with all but the sign bit flipped for negative numbers, is an integer that grows with the
number. Counting its upper 16 bits finds the bin of a wanted rank, counting the lower 16 inside that bin the number
itself; `Counts`, `Rank` and `locate` are those of `selection`. Ranks run from the largest (1) to the smallest.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from plait.tensors.selection import Counts, Rank, locate
from plait.tensors.summaries import deferrable

__all__ = ["count_lower", "count_upper", "nth_largest", "ordered_bits"]

_HALF = 16
_MASK = (1 << _HALF) - 1
_OFFSET = 1 << (_HALF - 1)
_FLIP = (1 << 31) - 1


def ordered_bits(values: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Integers in the order of the numbers, as float32; −0 and +0 are one number."""
    bits = (values.to(torch.float32) + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & _FLIP)


@deferrable
def count_upper(values: Float[Tensor, "*n"]) -> Counts:
    """Count the upper 16 bits."""
    upper = (ordered_bits(values).reshape(-1) >> _HALF) + _OFFSET
    return Counts(torch.bincount(upper, minlength=1 << _HALF))


@deferrable
def count_lower(values: Float[Tensor, "*n"], bin: int) -> Counts:
    """Count the lower 16 bits inside one bin of the upper ones."""
    bits = ordered_bits(values).reshape(-1)
    inside = bits[(bits >> _HALF) == bin - _OFFSET] & _MASK
    return Counts(torch.bincount(inside, minlength=1 << _HALF))


def nth_largest(upper: Rank, lower: Counts) -> float:
    """The number at the wanted rank, exactly."""
    bits = ((upper.bin - _OFFSET) << _HALF) | locate(lower, upper.rank).bin
    bits ^= (bits >> 31) & _FLIP
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
