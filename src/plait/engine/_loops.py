"""Compiled loops at work on the blocks of jobs; each is compared with torch before its first result counts."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.engine._finite import finite
from plait.engine._fusion import Fusion, same_summary
from plait.engine._plan import Job
from plait.engine._read import Reader
from plait.kernels import Bound, Kernel, Totals

__all__ = ["Loops", "Proving"]

#: elements that are compared with torch, and those of all inputs together
_PROOF, _PROOF_IN_ALL = 1 << 16, 1 << 18
_STEP = 1 << 12


class Proving(ABC):
    """Loops that are compared with torch before their first result counts.

    Attributes:
        fusion: makes the loops.
    """

    def __init__(self, fusion: Fusion, reader: Reader) -> None:
        self.fusion = fusion
        self._reader = reader
        self._proving = threading.RLock()

    @abstractmethod
    def collect(
        self, bound: Bound, job: Job, totals: Totals, ranges: Sequence[tuple[int, int]], note: bool = True
    ) -> None:
        """Run a survey's loop over blocks of a job; `note` whether the inputs' hashes are taken along."""

    def _compared(self, kernel: Kernel, job: Job, same: Callable[[], bool]) -> bool:
        """Whether a loop gives torch's bits: found out once, in one thread, for torch needs many times the memory."""
        if kernel.proven is None:
            with self._proving:
                if kernel.proven is None:
                    kernel.proven = same()
                    if not kernel.proven:
                        self.fusion.differs(job)
        return bool(kernel.proven)

    def proven(self, bound: Bound, job: Job, expected: Callable[[int, int], Any]) -> bool:
        """Compare a survey's loop with what torch finds in the first elements, once."""

        def same() -> bool:
            trial, end = bound.totals(), _proof_end(job, 0, job.entry.numel)
            self.collect(bound, job, trial, [(0, end)], note=False)
            with self._reader.aside():
                found = same_summary(trial.fill(bound.tree), expected(0, end))
            trial.release()
            return found

        return self._compared(bound.kernel, job, same)

    def _agrees(
        self, bound: Bound, job: Job, start: int, result: Tensor, expected: Callable[[int, int], Tensor]
    ) -> bool:
        """Compare the beginning of a merge's first block with what torch makes of it, once."""

        def same() -> bool:
            end = _proof_end(job, start, start + result.numel())
            with self._reader.aside():
                return torch.equal(_bits(result[: end - start]), _bits(expected(start, end)))

        return self._compared(bound.kernel, job, same)


class Loops(Proving):
    """The loops of one plan, with the inputs they read."""

    def __init__(self, fusion: Fusion, reader: Reader, complain: Callable[[Job, int, int], Any]) -> None:
        super().__init__(fusion, reader)
        self._complain = complain  # reads a block in torch, which names the tensor that is not finite

    def collect(
        self, bound: Bound, job: Job, totals: Totals, ranges: Sequence[tuple[int, int]], note: bool = True
    ) -> None:
        """Run a survey's loop over blocks of a job; `note` whether the inputs' hashes are taken along."""
        keys = self.fusion.keys(bound, job)
        slots = range(len(job.sources))
        for start, stop in ranges:
            inputs = [self._reader.stored(job, slot, start, stop, note) for slot in slots]
            space = self._reader.room(bound.room(stop - start))
            if bound.run(inputs, stop - start, None, start, keys, totals, space):
                self._complain(job, start, stop)

    def collect_together(self, bound: Bound, jobs: Sequence[Job], totals: Totals) -> None:
        """Run a survey's loop over jobs that lie side by side as if they were one."""
        inputs, length = self._side_by_side(jobs)
        if bound.run(inputs, length, None, 0, totals=totals, space=self._reader.room(bound.room(length))):
            for job in jobs:
                self._complain(job, 0, job.entry.numel)

    def merged_together(self, bound: Bound, jobs: Sequence[Job]) -> Tensor | None:
        """Run a merge's loop over jobs that lie side by side; None where some result is not finite."""
        inputs, length = self._side_by_side(jobs)
        return self._written(bound, None, jobs[0], inputs, length, 0)

    def _side_by_side(self, jobs: Sequence[Job]) -> tuple[list[int], int]:
        slots = range(len(jobs[0].sources))
        return [self._reader.stored_together(jobs, slot) for slot in slots], sum(job.entry.numel for job in jobs)

    def _written(
        self, bound: Bound, keys: Any, job: Job, inputs: Sequence[int], count: int, start: int
    ) -> Tensor | None:
        """Run over one block; return the result in the output's dtype, or None where it is not finite."""
        written = bound.kernel.output
        assert written is not None
        out = self._reader.scratch.take("out", count, written)
        if bound.run(inputs, count, out.data_ptr(), start, keys, space=self._reader.room(bound.room(count))):
            return None
        result = out if written is job.entry.dtype else out.to(job.entry.dtype)
        return result if written is job.entry.dtype or finite(result) else None

    def merged(
        self, bound: Bound, keys: Any, job: Job, start: int, stop: int, expected: Callable[[int, int], Tensor]
    ) -> Any:
        """Run a merge's loop over one block; None where the result is not finite, or not torch's."""
        inputs = [self._reader.stored(job, slot, start, stop) for slot in range(len(job.sources))]
        result = self._written(bound, keys, job, inputs, stop - start, start)
        if result is None:
            return None
        return result if self._agrees(bound, job, start, result, expected) else None


def _proof_end(job: Job, start: int, stop: int) -> int:
    """Where the elements end that are compared: torch needs many times their memory, and a loop is the same for all."""
    row = max(job.subject.row, 1) if job.unit == "row" else 1
    most = min(_PROOF, max(_PROOF_IN_ALL // len(job.sources) // _STEP, 1) * _STEP)
    return min(stop, start + max(most // row, 1) * row)


def _bits(values: Tensor) -> Tensor:
    """Numbers as bytes, so that equal means equal to the bit."""
    return values.contiguous().view(torch.uint8)
