"""Run a plan: surveys, then merges, on threads, within a memory budget, into a folder or a dictionary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.engine._executors import Executor, Threads, ThreadWorkers
from plait.engine._inputs import check_unchanged
from plait.engine._options import Options, Progress, Silent
from plait.engine._output import GrowingOutput
from plait.engine._plan import Plan
from plait.engine._remote_output import RemoteOutput
from plait.engine._run import Run
from plait.engine._scheduler import Bundle, bundles, each, pool
from plait.engine._targets import check_output, open_output
from plait.engine._timings import Timings
from plait.engine._workers import Finished
from plait.errors import (
    ClusterError,
    DiskSpaceError,
    MemoryBudgetError,
    OutputError,
    PlaitError,
    ReadError,
    UnreachableError,
)

__all__ = ["Result", "execute", "execute_in_memory"]


@dataclass(frozen=True)
class Result:
    """What a run did.

    Attributes:
        digests: output tensor → hash of its bytes.
        inputs: input name → tensor name → hash of its bytes, for every tensor the plan uses.
        resumed: number of tensors an earlier, killed run had finished.
        timings: where the time went.
        path: how elementwise steps were computed: kernels used, compiled anew, and what ran in torch blocks and why.
    """

    digests: Mapping[str, str]
    inputs: Mapping[str, Mapping[str, str]]
    resumed: int = 0
    timings: Timings = field(default_factory=Timings)
    path: Mapping[str, Any] = field(default_factory=dict)


def execute_in_memory(plan: Plan, options: Options | None = None) -> dict[str, Tensor]:
    """Run a plan and return the merged tensors.

    Raises:
        PlaitError: as `execute`.
    """
    options = options or Options()
    run = Run(plan, options, Silent())
    result = {job.name: torch.empty(job.entry.shape, dtype=job.entry.dtype) for job in plan.jobs}

    def work(bundle: Bundle) -> None:
        for job in bundle.jobs:
            flat = result[job.name].view(-1)

            def write(start: int, values: Tensor, flat: Tensor = flat) -> None:
                flat[start : start + values.numel()] = values

            run.merge(job, write)

    with pool(options.threads) as threads:
        run.survey(ThreadWorkers(run, threads))
        for _ in each(threads, bundles(plan.jobs, run.block), work, options, run.stop):
            pass
    return result


def execute(
    plan: Plan,
    out: Path | str,
    options: Options | None = None,
    progress: Progress | None = None,
    describe: Callable[[Plan, Result], Mapping[str, bytes]] | None = None,
    executor: Executor | None = None,
) -> Result:
    """Run a plan into a new folder, or continue a killed run of it.

    Args:
        plan: what to do.
        out: the folder to make, or the URL of one. It appears only when it is complete.
        options: how to do it.
        progress: told about bytes and phases.
        describe: gives the small files (config, card, provenance) once the tensors are known.
        executor: who does the work; by default the threads of this process.

    Raises:
        OutputError, DiskSpaceError, MemoryBudgetError: before anything is written.
        NonFiniteError, CheckpointError: on reading; nothing is left behind.
        ReadError: if the system cannot read a file now; what is finished is kept.
    """
    options = options or Options()
    progress = progress or Silent()
    run = Run(plan, options, progress)
    executor = executor or Threads()
    executor.check(plan, options)
    check_output(plan, out, options)
    if describe is not None:  # once without results: what cannot be read or written is found before any output
        describe(plan, Result({job.name: "" for job in plan.jobs}, {}))
    output = open_output(plan, out, options)
    try:
        timings = Timings()
        result = replace(_fill(plan, output, run, progress, executor, timings), timings=timings, path=run.path())
        for fusion in (e.fusion for e in run.evaluators if e.fusion is not None):
            timings.add("compile", *fusion.spent)
        files = {name: text.encode() for name, text in plan.layout.indices().items()}
        if describe is not None:
            files |= describe(plan, result)
        check_unchanged(plan)
        with timings.phase("finish"):
            output.finish(files)
    except (ClusterError, DiskSpaceError, MemoryBudgetError, OutputError, ReadError, UnreachableError):
        output.abandon(keep=True)
        raise
    except PlaitError:
        output.abandon(keep=False)
        raise
    except BaseException:
        output.abandon(keep=True)
        raise
    return result


def _fill(
    plan: Plan,
    output: GrowingOutput | RemoteOutput,
    run: Run,
    progress: Progress,
    executor: Executor,
    timings: Timings,
) -> Result:
    digests = _resume(plan, output, run) if output.resumed else {}
    resumed = len(digests)
    if resumed:
        progress.note(f"continuing: {resumed} of {len(plan.jobs)} tensors were finished by an earlier run")
    todo = [job for job in plan.jobs if job.name not in digests]
    lock = threading.Lock()

    def finished(made: Sequence[Finished]) -> None:
        with lock:
            digests.update((done.job.name, done.digest) for done in made)
            output.journal.finish([(done.job.name, done.digest, done.inputs) for done in made])

    with executor.start(run) as workers:
        if todo:
            with timings.phase("survey"):
                run.survey(workers, output.facts)
            progress.phase("merging", sum(s.nbytes for job in todo for s in job.sources))
        with timings.phase("merge"):
            workers.merge(todo, output, finished)
    return Result(digests, run.input_digests(), resumed)


def _resume(plan: Plan, output: GrowingOutput | RemoteOutput, run: Run) -> dict[str, str]:
    """Trust a finished tensor only if its bytes still hash to what the journal says."""
    found: dict[str, str] = {}
    for job in plan.jobs:
        record = output.journal.done.get(job.name)
        if record is None or output.digest(job.name, job.entry.nbytes) != record.get("digest"):
            continue
        leaves, inputs = run.leaves(job), record.get("inputs", {})
        if len(inputs) != len(leaves):
            continue
        for number, leaf in enumerate(leaves):
            run.hashes.restore(leaf, inputs[str(number)])
        found[job.name] = str(record["digest"])
    return found
