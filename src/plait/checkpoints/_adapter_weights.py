"""Weights that an adapter makes of a base: with a change added, DoRA's magnitudes applied, or rows replaced."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from plait.checkpoints._adapter_tensors import TILE, DerivedTensor
from plait.checkpoints._base import LazyTensor

__all__ = ["AdaptedTensor", "DoraTensor", "RowsTensor"]


class AdaptedTensor(DerivedTensor):
    """A weight with a change added to it, in float32."""

    def __init__(self, weight: LazyTensor, change: LazyTensor, name: str | None = None) -> None:
        dtype = torch.promote_types(torch.promote_types(weight.dtype, torch.float32), change.dtype)
        super().__init__(name or weight.name, weight.shape, dtype, change.source, weight.kept)
        self.weight, self.change = weight, change
        self.nbytes = weight.nbytes + change.nbytes

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """What lies on disk of both."""
        return (*self.weight.parts, *self.change.parts)

    def memory(self, block: int) -> int:
        """The change, and the weight in its own dtype."""
        return self.change.memory(block) + self.weight.memory(block) + block * (self.weight.dtype.itemsize + 4)

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Add."""
        change = self.change.read(start, stop).to(self.dtype)
        return change.add_(self.weight.read(start, stop, scratch))


class DoraTensor(DerivedTensor):
    """m ∘ V/‖V‖ with V = W + ΔW: DoRA's weight, norms over the inputs of each output.

    Args:
        adapted: V.
        magnitude: m, one number per output.
        columns: whether outputs are the columns of the stored weight (embeddings, fan-in-fan-out), not its rows.
    """

    def __init__(self, adapted: AdaptedTensor, magnitude: LazyTensor, columns: bool) -> None:
        super().__init__(adapted.name, adapted.shape, adapted.dtype, adapted.source, adapted.kept)
        self.adapted, self.magnitude, self.columns = adapted, magnitude, columns
        self.nbytes = adapted.nbytes + magnitude.nbytes
        self._factor: Tensor | None = None
        self._lock = threading.Lock()

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """Weight, factors and magnitudes."""
        return (*self.adapted.parts, self.magnitude)

    def memory(self, block: int) -> int:
        """V, and a factor per output."""
        return self.adapted.memory(block) + 4 * max(block, TILE) + 16 * self.magnitude.numel

    def _outputs(self) -> Tensor:
        """m/‖V‖ of every output: norms in float64 over tiles of fixed rows."""
        with self._lock:
            if self._factor is None:
                rows, width = self.shape[0], self.width
                squares = torch.zeros(width if self.columns else rows, dtype=torch.float64)
                tile = max(1, TILE // width)
                for first in range(0, rows, tile):
                    last = min(first + tile, rows)
                    values = self.adapted.read(first * width, last * width).double().view(last - first, width)
                    if self.columns:
                        squares += values.square().sum(dim=0)
                    else:
                        squares[first:last] = values.square().sum(dim=1)
                self._factor = (self.magnitude.load().reshape(-1).double() / squares.sqrt()).to(self.dtype)
            return self._factor

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Scale the range."""
        end = self.numel if stop is None else stop
        factor, width = self._outputs(), self.width
        places = torch.arange(start, end)
        places = places % width if self.columns else places // width
        return self.adapted.read(start, end, scratch).mul_(factor[places])


class RowsTensor(DerivedTensor):
    """A weight with some of its rows replaced: tokens that were trained by themselves."""

    def __init__(self, weight: LazyTensor, rows: LazyTensor, indices: tuple[int, ...]) -> None:
        dtype = torch.promote_types(weight.dtype, rows.dtype)
        super().__init__(weight.name, weight.shape, dtype, rows.source, weight.kept)
        self.weight, self.rows, self.indices = weight, rows, indices
        self.nbytes = weight.nbytes + rows.nbytes

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """The weight and the rows."""
        return (*self.weight.parts, self.rows)

    def memory(self, block: int) -> int:
        """The weight in its own dtype, and the rows."""
        return block * self.weight.dtype.itemsize + self.weight.memory(block) + 2 * self.rows.nbytes

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Put the rows in."""
        end = self.numel if stop is None else stop
        values = self.weight.read(start, end, scratch).to(self.dtype, copy=True)
        for number, index in enumerate(self.indices):
            first, last = max(start, index * self.width), min(end, (index + 1) * self.width)
            if first < last:
                offset = (number - index) * self.width
                values[first - start : last - start] = self.rows.read(first + offset, last + offset).to(self.dtype)
        return values
