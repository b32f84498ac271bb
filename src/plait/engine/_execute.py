"""Run a plan: surveys, then merges, on threads, within a memory budget, into a folder or a dictionary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from plait.checkpoints import LazyTensor
from plait.engine._evaluate import Evaluator
from plait.engine._factors import FactorCache
from plait.engine._facts import FactStore
from plait.engine._hashes import InputHashes, bytes_of
from plait.engine._malloc import return_large_blocks
from plait.engine._nested import PlannedTensor
from plait.engine._options import Options, Progress, Silent
from plait.engine._output import GrowingOutput, check_target
from plait.engine._plan import Job, Plan
from plait.engine._scheduler import check_memory, each, pool
from plait.errors import DiskSpaceError, OutputError, PlaitError
from plait.tensors.factors import factor

__all__ = ["Result", "execute", "execute_in_memory"]


@dataclass(frozen=True)
class Result:
    """What a run did.

    Attributes:
        digests: output tensor → hash of its bytes.
        inputs: input name → tensor name → hash of its bytes, for every tensor the plan uses.
        resumed: number of tensors an earlier, killed run had finished.
    """

    digests: Mapping[str, str]
    inputs: Mapping[str, Mapping[str, str]]
    resumed: int = 0


class _Run:
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
            )
            for p in self.plans
        ]
        for evaluator in self.evaluators:
            for job in evaluator.plan.jobs:
                for source in job.sources:
                    if isinstance(source, PlannedTensor):
                        source.cache.keep = options.threads + 1
                        source.cache.evaluator = next(e for e in self.evaluators if e.plan is source.cache.plan)
        self.main = self.evaluators[-1]

    def survey(self, workers: ThreadPoolExecutor, store: FactStore | None = None) -> None:
        """Run the model-wide surveys, of nested recipes first; rounds found in the store are not run again."""
        for index, evaluator in enumerate(self.evaluators):
            rounds = evaluator.model_rounds()
            for number, step in enumerate(rounds):
                known = store.find(index, step, number) if store is not None else None
                if known is not None:
                    evaluator.facts.setdefault(step, []).append(known)
                    continue
                jobs = [job for job in evaluator.plan.jobs if not job.copies and job.entry.numel]
                name = evaluator.plan.chain.steps[step].cls.name
                size = sum(s.nbytes for job in jobs for s in job.sources)
                self.progress.phase(f"surveying for {name} ({number + 1} of {len(rounds)})", size)
                total: Any = None

                def work(job: Job, evaluator: Evaluator = evaluator, step: int = step) -> Any:
                    part = evaluator.survey(job, step)
                    self.progress.advance(sum(s.nbytes for s in job.sources))
                    return part

                for part in each(workers, jobs, work, self.options, self.block, self.stop):
                    if part is not None:
                        total = part if total is None else total + part
                evaluator.facts.setdefault(step, []).append(total)
                if store is not None:
                    store.keep(index, step, number, total)

    def merge(self, job: Job, write: Callable[[int, Tensor], None]) -> str:
        """Compute one job block by block; return the hash of what was written."""
        state = xxhash.xxh3_128()
        ranges = self.main.ranges(job)
        sources = job.sources
        for index, (start, stop) in enumerate(ranges):
            if self.stop.is_set():
                raise _StoppedError
            if index + 1 < len(ranges):
                for source in sources:
                    source.prefetch(*ranges[index + 1])
            values = self.main.block(job, start, stop)
            state.update(bytes_of(values))
            write(start, values)
            self.progress.advance(sum(s.dtype.itemsize for s in sources) * (stop - start))
        self.main.forget(job)
        return state.hexdigest()

    def leaves(self, job: Job) -> list[LazyTensor]:
        """The tensors on disk that a job's result depends on."""
        found: list[LazyTensor] = []
        for source in job.sources:
            found += self.leaves(source.job) if isinstance(source, PlannedTensor) else [source]
        return found

    def input_digests(self) -> dict[str, dict[str, str]]:
        """Hash of every input tensor the plan uses, by the input's name."""
        owners: dict[int, tuple[str, str]] = {}
        for name, checkpoint in self.plan.inputs.items():
            for key, tensor in checkpoint.tensors.items():
                owners.setdefault(id(tensor), (name, key))
        found: dict[str, dict[str, str]] = {name: {} for name in self.plan.inputs}
        for job in self.plan.jobs:
            for leaf in self.leaves(job):
                name, key = owners[id(leaf)]
                found[name][key] = self.hashes.get(leaf)
        return found


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
    run = _Run(plan, options, Silent())
    result = {job.name: torch.empty(job.entry.shape, dtype=job.entry.dtype) for job in plan.jobs}

    def work(job: Job) -> None:
        flat = result[job.name].view(-1)

        def write(start: int, values: Tensor) -> None:
            flat[start : start + values.numel()] = values

        run.merge(job, write)

    with pool(options.threads) as workers:
        run.survey(workers)
        for _ in each(workers, plan.jobs, work, options, run.block, run.stop):
            pass
    return result


def execute(
    plan: Plan,
    out: Path,
    options: Options | None = None,
    progress: Progress | None = None,
    describe: Callable[[Plan, Result], Mapping[str, bytes]] | None = None,
) -> Result:
    """Run a plan into a new folder, or continue a killed run of it.

    Args:
        plan: what to do.
        out: the folder to make. It appears only when it is complete.
        options: how to do it.
        progress: told about bytes and phases.
        describe: gives the small files (config, card, provenance) once the tensors are known.

    Raises:
        OutputError, DiskSpaceError, MemoryBudgetError: before anything is written.
        NonFiniteError, CheckpointError: on reading; nothing is left behind.
    """
    options = options or Options()
    progress = progress or Silent()
    run = _Run(plan, options, progress)
    check_target(plan, out, options.overwrite)
    if describe is not None:  # once without results: what cannot be read or written is found before any output
        describe(plan, Result({job.name: "" for job in plan.jobs}, {}))
    output = GrowingOutput(out, plan.layout, plan.fingerprint(options.device), options.overwrite)
    try:
        result = _fill(plan, output, run, progress)
        files: dict[str, bytes] = {}
        index = plan.layout.index()
        if index is not None:
            files["model.safetensors.index.json"] = index.encode()
        if describe is not None:
            files |= describe(plan, result)
        output.finish(files)
    except (DiskSpaceError, OutputError):
        output.abandon(keep=True)
        raise
    except PlaitError:
        output.abandon(keep=False)
        raise
    except BaseException:
        output.abandon(keep=True)
        raise
    return result


def _fill(plan: Plan, output: GrowingOutput, run: _Run, progress: Progress) -> Result:
    digests = _resume(plan, output, run) if output.resumed else {}
    resumed = len(digests)
    if resumed:
        progress.note(f"continuing: {resumed} of {len(plan.jobs)} tensors were finished by an earlier run")
    todo = [job for job in plan.jobs if job.name not in digests]

    def work(job: Job) -> tuple[Job, str]:
        return job, run.merge(job, lambda start, values: output.write(job.name, start, values))

    with pool(run.options.threads) as workers:
        if todo:
            run.survey(workers, FactStore(output.work))
            progress.phase("merging", sum(s.nbytes for job in todo for s in job.sources))
        for job, digest in each(workers, todo, work, run.options, run.block, run.stop):
            digests[job.name] = digest
            inputs = [run.hashes.get(leaf) for leaf in run.leaves(job)]
            output.journal.finish(job.name, digest, {str(i): value for i, value in enumerate(inputs)})
    return Result(digests, run.input_digests(), resumed)


def _resume(plan: Plan, output: GrowingOutput, run: _Run) -> dict[str, str]:
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
