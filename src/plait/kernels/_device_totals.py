"""What surveys add up on a device: counted there, fetched when it is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plait.kernels._kernel import Bound, Totals, Window
from plait.kernels._sinks import BINS, LANES, SUMS, WINDOWS
from plait.tensors.selection import Counts
from plait.tensors.sums import SEGMENT, ExactSum

__all__ = ["DeviceTotals"]

_MANY = 1 << 12  # segments whose sums are kept on the device before they are fetched


class DeviceTotals(Totals):
    """What the sinks of a graph have added up so far, in one thread, on one device.

    `addresses`, `add` and `settle` belong where the thread's stream is the current one; once `settle` was called there,
    what was counted can be asked for anywhere.
    """

    def __init__(self, bound: Bound, device: torch.device) -> None:
        self.sinks = bound.sinks
        self._device = device
        self._sizes = [self._size(index, bound) for index in range(len(self.sinks))]
        self._held: list[Tensor | None] = [None] * len(self.sinks)
        self._sums = [ExactSum() for _ in self.sinks]
        self._summing = [index for index, sink in enumerate(self.sinks) if sink.kind in SUMS]
        self._lanes: Tensor | None = None
        self._found: list[Tensor] = []

    def _size(self, index: int, bound: Bound) -> int:
        sink = self.sinks[index]
        if sink.kind in WINDOWS:  # before the bins, what lies above them
            width = 1
            if sink.kind.startswith("window"):
                assert sink.parameter is not None
                width = bound.integers[sink.parameter + 1]
            return 1 + width * WINDOWS[sink.kind]
        return BINS.get(sink.kind, 1)

    def addresses(self, length: int) -> list[int]:
        """Where the next `length` elements are counted, and the lanes of their sums."""
        if self._summing:
            shape = (len(self._summing), -(-length // SEGMENT), LANES)
            self._lanes = torch.empty(shape, dtype=torch.float64, device=self._device)
        found = []
        for index, size in enumerate(self._sizes):
            if self._lanes is not None and index in self._summing:
                place = self._lanes[self._summing.index(index)]
            else:
                place = self._held[index]
                if place is None:
                    place = self._held[index] = torch.zeros(size, dtype=torch.int64, device=self._device)
            found.append(place.data_ptr())
        return found

    def add(self, length: int) -> None:
        """Make numbers of the lanes of the last call, in the order of `plait.tensors.sums`."""
        del length
        if self._lanes is None:
            return
        lanes, width = self._lanes, LANES // 2
        while width:
            lanes = lanes[..., :width] + lanes[..., width : 2 * width]
            width //= 2
        self._found.append(lanes[..., 0])
        self._lanes = None
        if sum(part.shape[1] for part in self._found) >= _MANY:
            self.settle()

    def settle(self) -> None:
        """Wait until all is counted; fetch the sums."""
        torch.get_device_module(self._device).current_stream(self._device).synchronize()
        if self._found:
            for index, row in zip(self._summing, torch.cat(self._found, dim=1).tolist(), strict=True):
                self._sums[index] += ExactSum.of(*row)
            self._found.clear()

    def result(self, index: int) -> Any:
        """The summary of one sink."""
        sink, held = self.sinks[index], self._held[index]
        if sink.kind in SUMS:
            return self._sums[index]
        found = torch.zeros(self._sizes[index], dtype=torch.int64) if held is None else held.cpu()
        if sink.kind == "count":
            return int(found[0])
        if sink.kind not in WINDOWS:
            return Counts(found)
        counts = Counts(found[1:].clone())
        return Window(int(found[0]), counts) if sink.kind.startswith("window") else counts

    def taken(self, index: int) -> Any:
        """The summary of one sink, whose memory is free from then on; nothing may be added to it any more."""
        found = self.result(index)
        self._held[index] = None
        return found

    def release(self) -> None:
        """Let others use this memory; nothing may be added any more."""
        self._held = [None] * len(self.sinks)
