"""Compiled loops at work on the blocks of jobs; each is compared with torch before its first result counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.engine._finite import finite
from plait.engine._fusion import Fusion, same_summary
from plait.engine._plan import Job
from plait.engine._read import Reader
from plait.kernels import Bound, Totals

__all__ = ["Loops", "bits_of", "proof_end"]

#: elements that are compared with torch, and those of all inputs together
_PROOF, _PROOF_IN_ALL = 1 << 16, 1 << 18
_STEP = 1 << 12


class Loops:
    """The loops of one plan, with the inputs they read.

    Attributes:
        fusion: makes the loops.
    """

    def __init__(self, fusion: Fusion, reader: Reader, complain: Callable[[Job, int, int], Any]) -> None:
        self.fusion = fusion
        self._reader = reader
        self._proving = threading.Lock()
        self._complain = complain  # reads a block in torch, which names the tensor that is not finite

    def proven(self, bound: Bound, job: Job, expected: Callable[[int, int], Any]) -> bool:
        """Compare a survey's loop with what torch finds in the first elements, once."""
        if bound.kernel.proven is not None:
            return bound.kernel.proven
        with self._proving:  # once, and in one thread: torch needs many times the memory
            if bound.kernel.proven is None:
                trial, end = bound.totals(), proof_end(job, 0, job.entry.numel)
                self.collect(bound, job, trial, [(0, end)], note=False)
                with self._reader.aside():
                    bound.kernel.proven = same_summary(trial.fill(bound.tree), expected(0, end))
                trial.release()
                if not bound.kernel.proven:
                    self.fusion.differs(job)
        return bound.kernel.proven

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

    def merged(
        self, bound: Bound, keys: Any, job: Job, start: int, stop: int, expected: Callable[[int, int], Tensor]
    ) -> Any:
        """Run a merge's loop over one block; None where the result is not finite, or not torch's."""
        count = stop - start
        inputs = [self._reader.stored(job, slot, start, stop) for slot in range(len(job.sources))]
        written = bound.kernel.output
        assert written is not None
        out = self._reader.scratch.take("out", count, written)
        if bound.run(inputs, count, out.data_ptr(), start, keys, space=self._reader.room(bound.room(count))):
            return None
        result = out if written is job.entry.dtype else out.to(job.entry.dtype)
        if written is not job.entry.dtype and not finite(result):
            return None
        if bound.kernel.proven is None:
            with self._proving:
                if bound.kernel.proven is None:
                    end = proof_end(job, start, stop)
                    with self._reader.aside():
                        bound.kernel.proven = torch.equal(bits_of(result[: end - start]), bits_of(expected(start, end)))
                    if not bound.kernel.proven:
                        self.fusion.differs(job)
        return result if bound.kernel.proven else None


def proof_end(job: Job, start: int, stop: int) -> int:
    """Where the elements end that are compared: torch needs many times their memory, and a loop is the same for all."""
    row = max(job.subject.row, 1) if job.unit == "row" else 1
    most = min(_PROOF, max(_PROOF_IN_ALL // len(job.sources) // _STEP, 1) * _STEP)
    return min(stop, start + max(most // row, 1) * row)


def bits_of(values: Tensor) -> Tensor:
    """Numbers as bytes, so that equal means equal to the bit."""
    return values.contiguous().view(torch.uint8)
