"""Small tensors that lie side by side in every file: one call computes them all, for it costs more than they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from plait.engine._fusion import read_as
from plait.engine._plan import Job

__all__ = ["side_by_side"]

#: elements of a tensor that is small, and of all that are computed at once
_SMALL, _MOST = 1 << 14, 1 << 18


def side_by_side(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Split jobs, in order, into runs; most are of one job.

    The jobs of a longer run are computed alike, element by element, and each input of a job follows that of the job
    before in the same file, stored as loops read it: together they are like one tensor.
    """
    run: list[Job] = []
    size = 0
    for job in jobs:
        if run and (size + job.entry.numel > _MOST or not _continues(run[-1], job)):
            yield run
            run, size = list[Job](), 0
        run.append(job)
        size += job.entry.numel
    if run:
        yield run


def _continues(before: Job, job: Job) -> bool:
    if not (0 < before.entry.numel <= _SMALL and 0 < job.entry.numel <= _SMALL):
        return False
    if job.methods != before.methods or job.weights != before.weights or job.origin != before.origin:
        return False
    if job.compute is not before.compute or job.entry.dtype is not before.entry.dtype or job.unit != "element":
        return False
    if job.copies or job.deltas or (job.base is None) != (before.base is None):
        return False
    pairs = zip(before.sources, job.sources, strict=False)
    return len(job.sources) == len(before.sources) and all(
        later.follows(earlier) and read_as(later.dtype) is later.dtype for earlier, later in pairs
    )
