"""Weights that are stored as few-bit codes with scales, computed block by block when they are read, in float32."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from plait.checkpoints._base import LazyTensor

__all__ = ["Dequantized", "GridTensor", "PackedIntegers"]


class Dequantized(LazyTensor):
    """A weight that is computed from the tensors that a quantised file keeps for it.

    Args:
        name: the weight's name.
        shape: the weight's shape.
        parts: the stored tensors.
        kept: dtype that a result on this tensor should have: the model's before it was quantised.
    """

    def __init__(self, name: str, shape: tuple[int, ...], parts: tuple[LazyTensor, ...], kept: torch.dtype) -> None:
        super().__init__(name, shape, torch.float32, parts[0].source)
        self.kept = kept
        self._parts = parts
        self.nbytes = sum(part.nbytes for part in parts)  # what is read for it

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """Codes and scales as they lie on disk."""
        return tuple(leaf for part in self._parts for leaf in part.parts)

    def memory(self, block: int) -> int:
        """Codes, scales and their product of a block, and what is kept of the scales."""
        width = max(1, prod(self.shape[1:]))
        return 12 * (block + 2 * width) + 2 * sum(4 * part.numel for part in self._parts[1:])


class PackedIntegers(Dequantized):
    """Whole numbers of a few bits, packed into the words of each row, lowest bits first; the offset taken off.

    Args:
        name: name of the weight.
        shape: rows and columns of the numbers.
        words: int32 (rows, words).
        bits: bits of a number: 2, 4 or 8, so that none reaches into the next word.
    """

    def __init__(self, name: str, shape: tuple[int, ...], words: LazyTensor, bits: int) -> None:
        super().__init__(name, shape, (words,), torch.float32)
        self.words, self.bits = words, bits

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Unpack the rows that the range lies in."""
        del scratch
        end = self.numel if stop is None else stop
        if end <= start:
            return torch.empty(0)
        columns, wide = self.shape[1], self.words.shape[1]
        first, last = start // columns, -(-end // columns)
        words = self.words.read(first * wide, last * wide).view(last - first, wide).to(torch.int64) & 0xFFFFFFFF
        places = torch.arange(columns) * self.bits
        values = ((words[:, places // 32] >> (places % 32)) & ((1 << self.bits) - 1)) - (1 << (self.bits - 1))
        return values.float().view(-1)[start - first * columns : end - first * columns]


class GridTensor(Dequantized):
    """(code − zero) · scale, with one scale and zero for each block of rows and columns.

    Args:
        codes: (rows, columns), of eight bits or unpacked.
        scale: one number, one for each row, or a grid of them.
        block: rows and columns of a block of the grid; the last ones may be cut short.
        kept: dtype of the model before it was quantised.
        zero: the codes of zero, with the shape of the scales.
        order: for each column its block, where they were taken in another order.
    """

    def __init__(
        self,
        codes: LazyTensor,
        scale: LazyTensor,
        block: tuple[int, int],
        kept: torch.dtype,
        zero: LazyTensor | None = None,
        order: LazyTensor | None = None,
    ) -> None:
        extra = tuple(part for part in (zero, order) if part is not None)
        super().__init__(codes.name, codes.shape, (codes, scale, *extra), kept)
        self.codes, self.scale, self.zero, self.order = codes, scale, zero, order
        self.block = block
        self.grid = (-(-self.shape[0] // block[0]), -(-prod(self.shape[1:]) // block[1]))

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Scale the range."""
        del scratch
        end = self.numel if stop is None else stop
        if end <= start:
            return torch.empty(0)
        columns = max(1, prod(self.shape[1:]))
        first, last = start // columns, -(-end // columns)
        begin, finish = start - first * columns, end - first * columns
        values = self.codes.read(start, end).to(torch.float32)
        rows = torch.arange(first, last) // self.block[0]
        places = self.order.load().long() if self.order is not None else torch.arange(columns) // self.block[1]

        def spread(grid: LazyTensor) -> Tensor:
            low, wide = int(rows[0]), self.grid[1]
            known = grid.read(low * wide, (int(rows[-1]) + 1) * wide).to(torch.float32).view(-1, wide)
            return known[rows - low][:, places].reshape(-1)[begin:finish]

        if self.zero is not None:
            values -= spread(self.zero)
        return values.mul_(spread(self.scale))

    def prefetch(self, start: int, stop: int) -> None:
        """Read the codes ahead."""
        if self.codes.shape == self.shape:
            self.codes.prefetch(start, stop)
