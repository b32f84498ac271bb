"""Who does the work of a plan: the threads of this process, or something else that keeps the same two promises."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from plait.engine._options import Options
from plait.engine._output import GrowingOutput
from plait.engine._plan import Job, Plan
from plait.engine._remote_output import RemoteOutput
from plait.engine._rounds import two_rounds
from plait.engine._run import Run
from plait.engine._scheduler import Bundle, bundles, each, pool
from plait.engine._workers import Finished, Workers
from plait.kernels import Tally

__all__ = ["Executor", "ThreadWorkers", "Threads"]


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
        """Survey in bundles, within the memory budget; what kernels count comes last, once for each thread."""
        run, evaluator, tally = self._run, self._run.evaluators[index], Tally()

        def work(bundle: Bundle) -> Any:
            return evaluator.survey(bundle.jobs, step, tally, run.surveyed)

        yield from each(self._threads, bundles(jobs, run.block), work, run.options, run.stop)
        for bound, totals in tally.parts():
            yield totals.fill(bound.tree)

    def two_rounds(self, index: int, step: int, jobs: Sequence[Job]) -> tuple[Any, Any] | None:
        """Count both rounds of an exact threshold in one pass, where a sample can say where."""
        run = self._run

        def spread(jobs: Sequence[Job], work: Callable[[Sequence[Job]], Any]) -> Iterator[Any]:
            parts = bundles(jobs, run.block)
            # with an event of its own: giving up on this way does not end the run
            return each(self._threads, parts, lambda b: work(b.jobs), run.options, threading.Event())

        return two_rounds(run.evaluators[index], jobs, step, spread, run.surveyed)

    def merge(
        self, jobs: Sequence[Job], output: GrowingOutput | RemoteOutput, done: Callable[[Sequence[Finished]], None]
    ) -> None:
        """Merge in bundles, within the memory budget."""
        run = self._run

        def work(bundle: Bundle) -> None:
            for jobs, digests in run.merges(bundle.jobs, output.write):
                pairs = zip(jobs, digests, strict=True)
                done([Finished(job, digest, [run.hashes.get(s) for s in run.leaves(job)]) for job, digest in pairs])

        for batch in output.batches(jobs):
            for _ in each(self._threads, bundles(batch, run.block), work, run.options, run.stop):
                pass
