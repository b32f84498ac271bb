"""Compiled loops at work on a device: blocks are sent as they are stored, and nothing is waited for in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.engine._device import Landing, Lane, named_memory
from plait.engine._fusion import read_as
from plait.engine._loops import Proving
from plait.engine._plan import Job
from plait.kernels import Bound, Totals

__all__ = ["DeviceLoops"]


class DeviceLoops(Proving):
    """The loops of one plan on a device; each is compared with torch there."""

    @property
    def _lane(self) -> Lane:
        assert self._reader.transfers is not None
        return self._reader.transfers.lane

    def _run(
        self,
        bound: Bound,
        keys: Any,
        job: Job,
        start: int,
        stop: int,
        out: int,
        totals: Totals | None,
        note: bool = True,
    ) -> Tensor:
        """Send one block of every input and run; return the flags."""
        lane = self._lane
        inputs = [
            self._reader.sent(slot, source, start, stop, note).to(read_as(source.dtype))
            for slot, source in enumerate(job.sources)
        ]
        flags = torch.zeros(1, dtype=torch.int32, device=lane.device)
        addresses = [values.data_ptr() for values in inputs]
        bound.launch(lane.stream, addresses, stop - start, out, start, flags.data_ptr(), keys, totals)
        return flags

    def collect(
        self, bound: Bound, job: Job, totals: Totals, ranges: Sequence[tuple[int, int]], note: bool = True
    ) -> None:
        """Run a survey's loop over blocks of a job; `note` whether the inputs' hashes are taken along."""
        keys = self.fusion.keys(bound, job)
        with self._lane.work(), named_memory(job, self._lane.device):
            flags = [self._run(bound, keys, job, start, stop, 0, totals, note) for start, stop in ranges]
            totals.settle()
            sound = not flags or not bool(torch.cat(flags).any())
        if not sound:
            for start, stop in ranges:
                self._reader.complain(job, start, stop)

    def launched(
        self, bound: Bound, keys: Any, job: Job, start: int, stop: int, expected: Callable[[int, int], Tensor]
    ) -> Landing | None:
        """Begin to merge one block; None where the loop's result is not torch's."""
        lane, written = self._lane, bound.kernel.output
        assert written is not None
        with lane.work(), named_memory(job, lane.device):
            out = torch.empty(stop - start, dtype=written, device=lane.device)
            flags = self._run(bound, keys, job, start, stop, out.data_ptr(), None)
            result = out if written is job.entry.dtype else out.to(job.entry.dtype)
            if not self._agrees(bound, job, start, result, expected):
                return None
            lane.require(flags == 0)
            if written is not job.entry.dtype:
                lane.expect(result)
            return lane.land(start, result)
