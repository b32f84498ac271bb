"""Who does the work of a plan: the threads of this process, or something else that keeps the same two promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from plait.engine._options import Options
from plait.engine._plan import Job, Plan
from plait.engine._scheduler import each, pool

if TYPE_CHECKING:
    from plait.engine._execute import Run
    from plait.engine._output import GrowingOutput
    from plait.engine._remote_output import RemoteOutput

__all__ = ["Executor", "Finished", "ThreadWorkers", "Threads", "Workers"]


@dataclass(frozen=True)
class Finished:
    """One output tensor whose bytes are in place.

    Attributes:
        job: what was done.
        digest: hash of its bytes.
        inputs: hash of each tensor on disk that it depends on, in the order of `Run.leaves`.
    """

    job: Job
    digest: str
    inputs: Sequence[str]


class Workers(Protocol):
    """What an executor offers while a plan runs. Results come in any order; the first error ends the work."""

    def survey(self, index: int, step: int, jobs: Sequence[Job]) -> Iterator[Any]:
        """Yield partial totals of one survey round, which add up to the whole in any grouping.

        Args:
            index: which of the run's evaluators: nested plans come first.
            step: which step of its chain is surveyed.
            jobs: the jobs that take part.
        """
        ...

    def merge(self, jobs: Sequence[Job], output: GrowingOutput | RemoteOutput) -> Iterator[Finished]:
        """Write the tensors of all jobs into the output; yield each when its bytes are in place."""
        ...


class Executor(Protocol):
    """Where the work is done."""

    def check(self, plan: Plan, options: Options) -> None:
        """Refuse, before anything is written, what cannot be done there."""
        ...

    def start(self, run: Run) -> AbstractContextManager[Workers]:
        """Make the workers ready for one run."""
        ...


class Threads:
    """The threads of this process: the default."""

    def check(self, plan: Plan, options: Options) -> None:
        """Everything can be done here."""

    @contextmanager
    def start(self, run: Run) -> Iterator[Workers]:
        """Begin the threads; wait for them in the end."""
        with pool(run.options.threads) as threads:
            yield ThreadWorkers(run, threads)


class ThreadWorkers:
    """Threads at work on one run."""

    def __init__(self, run: Run, threads: ThreadPoolExecutor) -> None:
        self._run = run
        self._threads = threads

    def survey(self, index: int, step: int, jobs: Sequence[Job]) -> Iterator[Any]:
        """Survey job by job, within the memory budget."""
        run, evaluator = self._run, self._run.evaluators[index]

        def work(job: Job) -> Any:
            part = evaluator.survey(job, step)
            run.progress.advance(sum(s.nbytes for s in job.sources))
            return part

        yield from each(self._threads, jobs, work, run.options, run.block, run.stop)

    def merge(self, jobs: Sequence[Job], output: GrowingOutput | RemoteOutput) -> Iterator[Finished]:
        """Merge job by job, within the memory budget."""
        run = self._run

        def work(job: Job) -> tuple[Job, str]:
            return job, run.merge(job, lambda start, values: output.write(job.name, start, values))

        for batch in output.batches(jobs):
            for job, digest in each(self._threads, batch, work, run.options, run.block, run.stop):
                yield Finished(job, digest, [run.hashes.get(leaf) for leaf in run.leaves(job)])
