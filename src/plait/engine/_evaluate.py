"""Merge the blocks of jobs: in torch, by compiled loops, or on a device; nested recipes as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from plait.engine._device import Landing, named_memory
from plait.engine._device_loops import DeviceLoops
from plait.engine._finite import check_finite, check_result
from plait.engine._loops import Loops
from plait.engine._plan import Job
from plait.engine._surveys import Surveys

__all__ = ["Evaluator"]


class Evaluator(Surveys):
    """Evaluates the jobs of one plan."""

    def computing(self, job: Job) -> Callable[[int, int], Tensor]:
        """Prepare a job; return what computes the flat result of one block, in the output's dtype, on the CPU.

        The result may lie in a buffer that the next block is computed in.
        """
        if job.copies:
            return lambda start, stop: self._copied(job, start, stop)
        facts = self._known(job)
        if self._reader.transfers is not None:
            launch = self._launching(job, facts)
            return lambda start, stop: self._landed(job, facts, launch(start, stop))
        bound, loops = self.kernel(job, None, facts), self.loops
        if bound is None or not isinstance(loops, Loops):
            return lambda start, stop: self._eager(job, facts, start, stop)
        loop, keys = bound, loops.fusion.keys(bound, job)

        def compute(start: int, stop: int) -> Tensor:
            result: Tensor | None = None
            if loop.kernel.proven is not False:
                result = loops.merged(loop, keys, job, start, stop, lambda i, j: self._eager(job, facts, i, j))
            return self._eager(job, facts, start, stop) if result is None else result

        return compute

    def _known(self, job: Job) -> dict[int, list[Any]]:
        return self._tensor_level(job, len(job.methods)) | self.facts

    def results(self, job: Job, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, Tensor]]:
        """Compute blocks in order; yield the beginning of each and its flat result, as `computing` returns it.

        On a device the next block is read and sent before this one's result is waited for.
        """
        if self._reader.transfers is None or job.copies:
            compute = self.computing(job)
            for start, stop in ranges:
                yield start, compute(start, stop)
            return
        facts, before = self._known(job), None
        launch = self._launching(job, facts)
        for start, stop in ranges:
            launched = launch(start, stop)
            if before is not None:
                yield before.start, self._landed(job, facts, before)
            before = launched
        if before is not None:
            yield before.start, self._landed(job, facts, before)

    def together(self, jobs: Sequence[Job]) -> Tensor | None:
        """Return the flat results of jobs that lie side by side, one after the other; None if each must be computed.

        They lie in a buffer as those of `computing` do.
        """
        first = jobs[0]
        own = any(m.rounds and (m.survey_scope == "tensor" or not self.chained(first)) for m in first.methods)
        bound = None if own else self.joined(first, None, self._known(first))
        if bound is None or not isinstance(self.loops, Loops):
            return None
        return self.loops.merged_together(bound, jobs)

    def block(self, job: Job, start: int, stop: int) -> Tensor:
        """Return the flat result of one block."""
        return self.computing(job)(start, stop)

    def _merged(self, job: Job, facts: dict[int, list[Any]], start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The flat result of one block, and what it was before it was rounded."""
        merged = self._run(job, self._group(job, start, stop), facts, len(job.methods)).merged
        assert merged is not None
        return merged.reshape(-1).to(job.entry.dtype), merged

    def _eager(self, job: Job, facts: dict[int, list[Any]], start: int, stop: int) -> Tensor:
        result, merged = self._merged(job, facts, start, stop)
        if result.numel() and self._strict:
            check_result(result, merged, job)
        return result

    def _launching(self, job: Job, facts: dict[int, list[Any]]) -> Callable[[int, int], Landing]:
        """Prepare a job; return what begins to compute one block on the device."""
        bound, loops = self.kernel(job, None, facts), self.loops
        if bound is None or not isinstance(loops, DeviceLoops):
            return lambda start, stop: self._launched(job, facts, start, stop)
        loop, keys = bound, loops.fusion.keys(bound, job)

        def launch(start: int, stop: int) -> Landing:
            landing = None
            if loop.kernel.proven is not False:
                landing = loops.launched(loop, keys, job, start, stop, lambda i, j: self._merged(job, facts, i, j)[0])
            return self._launched(job, facts, start, stop) if landing is None else landing

        return launch

    def _launched(self, job: Job, facts: dict[int, list[Any]], start: int, stop: int) -> Landing:
        """Begin to compute one block on the device."""
        assert self._reader.transfers is not None
        lane = self._reader.transfers.lane
        with lane.work(), named_memory(job, self.device):
            result, _ = self._merged(job, facts, start, stop)
            if self._strict:
                lane.expect(result)
            return lane.land(start, result)

    def _landed(self, job: Job, facts: dict[int, list[Any]], landing: Landing) -> Tensor:
        """Wait for a block; if something in it was not finite, find out what."""
        result, sound = landing.wait()
        if not sound:
            assert self._reader.transfers is not None
            stop = landing.start + result.numel()
            self._reader.complain(job, landing.start, stop)
            with self._reader.transfers.lane.work():
                check_result(*self._merged(job, facts, landing.start, stop), job)
        return result

    def _copied(self, job: Job, start: int, stop: int) -> Tensor:
        source = job.experts[0]
        raw = self._reader.raw(source, start, stop)
        strict = raw.dtype.is_floating_point and raw.numel() and self._strict
        if strict:
            check_finite(raw, source, start)
        result = raw.to(job.entry.dtype)
        if strict:
            check_result(result, raw, job)
        return result

    def whole(self, job: Job) -> Tensor:
        """Return a whole flat tensor."""
        result = torch.empty(job.entry.numel, dtype=job.entry.dtype)
        compute = self.computing(job)
        for start, stop in self.ranges(job):
            result[start:stop] = compute(start, stop)
        return result
