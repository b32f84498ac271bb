"""Survey rounds over many jobs, two at once where a sample can say where to count (see `plait.engine._speculate`)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import accumulate
from typing import Any, Protocol

import torch

from plait.engine._fusion import Fusion, read_as
from plait.engine._loops import Loops, Proving
from plait.engine._plan import Job
from plait.engine._side_by_side import side_by_side
from plait.engine._speculate import SLACK, Aim, aim, enlarged, hit, shifted, windowed
from plait.kernels import Bound, Graph, Tally, Untraceable, fill

__all__ = ["two_rounds"]

#: calls a function on pieces of the jobs, on as many workers as there are, and gives what it returns
Spread = Callable[[Sequence[Job], Callable[[Sequence[Job]], Any]], Iterable[Any]]


class Surveyor(Protocol):
    """What the rounds need of an evaluator."""

    facts: dict[int, list[Any]]
    fusion: Fusion | None
    loops: Proving | None

    def chained(self, job: Job, /) -> bool: ...
    def facts_before(self, job: Job, step: int, /) -> dict[int, list[Any]]: ...
    def surveyed(self, job: Job, group: Any, facts: dict[int, list[Any]], step: int, /) -> Any: ...
    def kernel(self, job: Job, step: int | None, facts: dict[int, list[Any]], /) -> Bound | None: ...
    def proven(self, bound: Bound, job: Job, step: int, /) -> bool: ...
    def ranges(self, job: Job, /) -> list[tuple[int, int]]: ...


_CHUNK = 1 << 14
_SHARE = 32  # one in so many elements is sampled …
_ENOUGH = 1 << 18  # … but not fewer than this
_WORTH = 1 << 21  # elements from which a sample pays


class _NotHereError(Exception):
    """Some job cannot be counted this way."""


class _Rounds:
    """The first two rounds of one step's survey."""

    def __init__(self, evaluator: Surveyor, jobs: Sequence[Job], step: int) -> None:
        self.evaluator = evaluator
        self.jobs = jobs
        self.step = step
        self.total = sum(job.entry.numel for job in jobs)
        self._bound: dict[Any, Bound] = {}
        self._lead = ""  # the largest job …
        self._first: tuple[Graph, Any] | None = None  # … and its first round
        sizes = accumulate((job.entry.numel for job in jobs), initial=0)
        self._offsets = dict(zip((job.name for job in jobs), sizes, strict=False))

    def trace(self, job: Job, known: Sequence[Any]) -> tuple[Graph, Any]:
        """Graph and tree of a job's survey, given the totals of the rounds before."""
        if self.evaluator.fusion is None:
            raise Untraceable("kernels are off")
        facts = self.evaluator.facts_before(job, self.step)
        if any(totals and index not in self.evaluator.facts for index, totals in facts.items()):
            raise Untraceable("facts of one tensor")
        facts[self.step] = list(known)
        graph, tree, asked = self.evaluator.fusion.follow(
            job, lambda job, group: self.evaluator.surveyed(job, group, facts, self.step)
        )
        if asked and len(self.jobs) > 1:
            raise Untraceable("a survey of its own for each tensor")
        return graph, tree

    def sample(self, jobs: Sequence[Job], tally: Tally) -> int:
        """Count a share of the elements as the first round does; return how many."""
        counted = 0
        for job in jobs:
            bound = self.evaluator.kernel(job, self.step, self.evaluator.facts_before(job, self.step))
            if bound is None:
                raise _NotHereError
            ranges = self._picked(job)
            if ranges:
                if not self.evaluator.proven(bound, job, self.step):
                    raise _NotHereError
                assert self.evaluator.loops is not None
                self.evaluator.loops.collect(bound, job, tally.of(bound), ranges, note=False)
                counted += sum(stop - start for start, stop in ranges)
        return counted

    def _picked(self, job: Job) -> list[tuple[int, int]]:
        """The chunks of a job that are sampled: at even distances over all jobs in a row, so that none counts twice.

        A chunk may run over many small tensors.
        """
        stride = _CHUNK * max(1, min(_SHARE, self.total // _ENOUGH))
        before, size = self._offsets[job.name], job.entry.numel
        first = before // stride * stride - before  # where the last chunk before this job begins
        chunks = ((max(start, 0), min(start + _CHUNK, size)) for start in range(first, size, stride))
        return [(start, stop) for start, stop in chunks if start < stop]

    def count(self, jobs: Sequence[Job], aims: Sequence[Aim], tally: Tally, done: Callable[[Job], None]) -> None:
        """Count inside the windows."""
        loops = self.evaluator.loops
        assert loops is not None
        for run in side_by_side(jobs):
            bound = self._windows(run[0], aims)
            if len(run) > 1 and isinstance(loops, Loops) and bound.joins:
                loops.collect_together(bound, run, tally.of(bound))
                for job in run:
                    done(job)
                continue
            for job in run:
                bound = self._windows(job, aims)
                loops.collect(bound, job, tally.of(bound), self.evaluator.ranges(job))
                done(job)

    def _windows(self, job: Job, aims: Sequence[Aim]) -> Bound:
        assert self.evaluator.fusion is not None
        inputs = tuple(read_as(source.dtype) for source in job.sources)
        key = (job.methods, job.weights, inputs)
        if key not in self._bound:
            known = self._first if job.name == self._lead else self.trace(job, ())
            assert known is not None
            graph = windowed(known[0], aims)
            kernel = self.evaluator.fusion.kernel(graph, inputs, None)
            if kernel is None:
                raise _NotHereError
            kernel.proven = True  # the same loop as the coarse counts', which has been compared with torch
            self._bound[key] = Bound(kernel, graph)
            self._bound[key].general = len(self.jobs) > 1  # see `trace`
        return self._bound[key]

    def _aimed(self, lead: Job, first: tuple[Graph, Any], spread: Spread) -> list[Aim] | None:
        """Where to count, as a sample says."""
        tally = Tally()
        size = sum(spread(self.jobs, lambda jobs: self.sample(jobs, tally)))
        if not size:
            return None
        whole = [enlarged(item, size, self.total) for item in _added(tally)]

        def second(share: float) -> Graph:
            """The second round's graph, if what the sample says of the first is off by a share of all elements."""
            guess = [shifted(item, share) for item in whole]
            return self.trace(lead, (fill(first[1], lambda pending: guess[pending.index]),))[0]

        if len(self.jobs) == 1:  # for a tensor by itself the narrowest windows cost more than they save
            return aim(first[0], [second(0.0)], whole)
        return aim(first[0], [second(share) for share in (0.0, SLACK, -SLACK)])

    def run(self, spread: Spread, done: Callable[[Job], None]) -> tuple[Any, Any] | None:
        """Sample, aim, count; None where the rounds must be run one by one."""
        lead = max(self.jobs, key=lambda job: job.entry.numel)
        self._lead = lead.name
        try:
            first = self._first = self.trace(lead, ())
            if not any(sink.kind in ("count_coarse", "count_upper") for sink in first[0].sinks):
                return None
            aims = self._aimed(lead, first, spread)
            if aims is None:
                return None
            tally = Tally()
            for _ in spread(self.jobs, lambda jobs: self.count(jobs, aims, tally, done)):
                pass
            return hit(first, aims, list(_added(tally)), self.total, lambda coarse: self.trace(lead, (coarse,)))
        except (Untraceable, _NotHereError):
            return None


def _added(tally: Tally) -> Iterator[Any]:
    """What all threads have counted; sink by sink, so that little of it is there twice."""
    every = [totals for _, totals in tally.parts()]
    for i in range(len(every[0].sinks)):
        yield reduce(operator.add, (totals.taken(i) for totals in every))


def two_rounds(
    evaluator: Surveyor, jobs: Sequence[Job], step: int, spread: Spread, done: Callable[[Job], None]
) -> tuple[Any, Any] | None:
    """Return the totals of the first two rounds of a step's survey from one pass; None if they must be run apart.

    Args:
        evaluator: of the plan.
        jobs: what is surveyed.
        step: which method of the chain.
        spread: runs a function on pieces of the jobs.
        done: told of every job that is counted.
    """
    live = [job for job in jobs if evaluator.chained(job)]
    large = sum(job.entry.numel for job in live) >= _WORTH
    fit = all(job.unit == "element" and job.compute == torch.float32 and not job.deltas for job in live)
    if evaluator.fusion is None or not large or not fit or live[0].methods[step].rounds < 2:
        return None
    return _Rounds(evaluator, live, step).run(spread, done)
