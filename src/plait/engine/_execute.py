"""Run a plan: surveys, then merges, on threads, within a memory budget, into a folder or a dictionary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from plait.checkpoints import LazyTensor
from plait.engine._evaluate import Evaluator
from plait.engine._executors import Executor, Finished, Threads, ThreadWorkers, Workers
from plait.engine._factors import FactorCache
from plait.engine._facts import FactStore
from plait.engine._hashes import InputHashes, bytes_of
from plait.engine._inputs import check_unchanged
from plait.engine._malloc import return_large_blocks
from plait.engine._nested import PlannedTensor
from plait.engine._options import Options, Progress, Silent
from plait.engine._output import GrowingOutput
from plait.engine._plan import Job, Plan
from plait.engine._remote_output import RemoteOutput
from plait.engine._scheduler import Bundle, bundles, check_memory, each, pool
from plait.engine._targets import check_output, open_output
from plait.engine._timings import Timings
from plait.errors import ClusterError, DiskSpaceError, OutputError, PlaitError, ReadError, UnreachableError
from plait.tensors.factors import factor

#: parameters, or tensors, from which loops are compiled
_LARGE, _MANY = 1 << 24, 250
#: blocks that are read ahead of those being merged
_AHEAD = 8

__all__ = ["Result", "Run", "execute", "execute_in_memory"]


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


class Run:
    """One execution: evaluators for the plan and its nested plans, surveys, and the merge of each job."""

    def __init__(self, plan: Plan, options: Options, progress: Progress) -> None:
        options.check()
        self.plan = plan
        self.options = options
        self.progress = progress
        self.block = check_memory(plan, options)
        self.hashes = InputHashes()
        self.stop = threading.Event()
        self.plans = list(_innermost_first(plan))
        if any(job.unit == "tensor" and not job.copies for p in self.plans for job in p.jobs):
            return_large_blocks()
        factoriser = FactorCache(options.factors) if options.factors is not None else factor
        self.evaluators = [
            Evaluator(
                p,
                hashes=self.hashes,
                device=options.device,
                block=self.block,
                replay=options.replay,
                factoriser=factoriser,
                keep=4 * options.threads + 4,
                fused=_worth(p, options),
            )
            for p in self.plans
        ]
        for evaluator in self.evaluators:
            for job in evaluator.plan.jobs:
                for source in (part for tensor in job.sources for part in tensor.parts):
                    if isinstance(source, PlannedTensor):
                        source.cache.keep = options.threads + 1
                        source.cache.evaluator = next(e for e in self.evaluators if e.plan is source.cache.plan)
        self.main = self.evaluators[-1]

    def survey(self, workers: Workers, store: FactStore | None = None) -> None:
        """Run the model-wide surveys, of nested recipes first; rounds found in the store are not run again."""
        for index, evaluator in enumerate(self.evaluators):
            rounds = evaluator.model_rounds()
            for number, step in enumerate(rounds):
                before = rounds[:number].count(step)
                if len(evaluator.facts.get(step, ())) > before:
                    continue  # counted together with the round before
                known = store.find(index, step, number) if store is not None else None
                if known is not None:
                    evaluator.facts.setdefault(step, []).append(known)
                    continue
                jobs = [job for job in evaluator.plan.jobs if not job.copies and job.entry.numel]
                name = evaluator.plan.chain.steps[step].cls.name
                size = sum(s.nbytes for job in jobs for s in job.sources)
                self.progress.phase(f"surveying for {name} ({number + 1} of {len(rounds)})", size)
                if not before:
                    both = workers.two_rounds(index, step, jobs)
                    if both is not None:
                        evaluator.facts[step] = list(both)
                        for offset, part in enumerate(both if store is not None else ()):
                            assert store is not None
                            store.keep(index, step, number + offset, part)
                        continue
                total: Any = None
                for part in workers.survey(index, step, jobs):
                    if part is not None:
                        total = part if total is None else total + part
                evaluator.facts.setdefault(step, []).append(total)
                if store is not None:
                    store.keep(index, step, number, total)

    def path(self) -> dict[str, Any]:
        """How elementwise steps were computed."""
        fusions = [e.fusion for e in self.evaluators if e.fusion is not None]
        refused: dict[str, int] = {}
        for fusion in fusions:
            for reason, count in fusion.refused.items():
                refused[reason] = refused.get(reason, 0) + count
        kernels, built = sum(f.kernels for f in fusions), sum(f.built for f in fusions)
        return {"kernels": kernels, "compiled": built, "blocks": refused}

    def surveyed(self, job: Job) -> None:
        if self.stop.is_set():
            raise _StoppedError
        self.progress.advance(sum(s.nbytes for s in job.sources))

    def merge(self, job: Job, write: Callable[[int, Tensor], None]) -> str:
        """Compute one job block by block; return the hash of what was written."""
        state = xxhash.xxh3_128()
        ranges = self.main.ranges(job)
        sources = job.sources
        compute = self.main.computing(job)
        for index, (start, stop) in enumerate(ranges):
            if self.stop.is_set():
                raise _StoppedError
            if index % _AHEAD == 0 and index + 1 < len(ranges):
                for source in sources:
                    source.prefetch(stop, ranges[min(index + _AHEAD, len(ranges) - 1)][1])
            values = compute(start, stop)
            state.update(bytes_of(values))
            write(start, values)
            self.progress.advance(sum(s.dtype.itemsize for s in sources) * (stop - start))
        self.main.forget(job)
        return state.hexdigest()

    def leaves(self, job: Job) -> list[LazyTensor]:
        """The tensors on disk that a job's result depends on."""
        found: list[LazyTensor] = []
        for source in (part for tensor in job.sources for part in tensor.parts):
            found += self.leaves(source.job) if isinstance(source, PlannedTensor) else [source]
        return found

    def input_digests(self) -> dict[str, dict[str, str]]:
        """Hash of every input tensor the plan uses, by the input's name."""
        owners: dict[int, tuple[str, str]] = {}
        for name, checkpoint in self.plan.inputs.items():
            for key, tensor in checkpoint.stored.items():
                owners.setdefault(id(tensor), (name, key))
        found: dict[str, dict[str, str]] = {name: {} for name in self.plan.inputs}
        for job in self.plan.jobs:
            for leaf in self.leaves(job):
                name, key = owners[id(leaf)]
                found[name][key] = self.hashes.get(leaf)
        return found


def _worth(plan: Plan, options: Options) -> bool:
    """Whether compiling a method's loops (about a second each, once) pays for this plan."""
    if options.compile == "auto":
        return plan.parameters >= _LARGE or len(plan.jobs) >= _MANY
    return options.compile == "always"


class _StoppedError(Exception):
    """Another job failed; this one gives up."""


def _innermost_first(plan: Plan) -> Iterator[Plan]:
    for inner in plan.nested:
        yield from _innermost_first(inner)
    yield plan


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
    except (ClusterError, DiskSpaceError, OutputError, ReadError, UnreachableError):
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

    def finished(done: Finished) -> None:
        with lock:
            digests[done.job.name] = done.digest
            for leaf, digest in zip(run.leaves(done.job), done.inputs, strict=True):
                run.hashes.restore(leaf, digest)
            inputs = {str(i): value for i, value in enumerate(done.inputs)}
            output.journal.finish(done.job.name, done.digest, inputs)

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
