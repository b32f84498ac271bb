"""Run a plan: surveys, then merges, on threads, within a memory budget, into a folder or a dictionary."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash
from torch import Tensor

from plait.checkpoints import Checkpoint, LazyTensor
from plait.engine._evaluate import Evaluator
from plait.engine._factors import FactorCache
from plait.engine._facts import FactStore
from plait.engine._hashes import InputHashes, bytes_of
from plait.engine._nested import PlannedTensor
from plait.engine._output import GrowingOutput, check_target
from plait.engine._plan import Job, Plan
from plait.errors import DiskSpaceError, MemoryBudgetError, PlaitError, RecipeError
from plait.tensors.spectral import svd

__all__ = [
    "BLOCK",
    "Options",
    "Progress",
    "Result",
    "Silent",
    "check_memory",
    "execute",
    "execute_in_memory",
    "resident_memory",
]

#: default elements per block: small enough for caches, large enough to hide Python
BLOCK = 1 << 18


class Progress(Protocol):
    """What a caller may want to know while a plan runs."""

    def phase(self, name: str, total: int) -> None:
        """A phase begins; `total` bytes will be read in it."""

    def advance(self, count: int) -> None:
        """That many bytes are done; called from any thread."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Silent:
    """Tells nothing."""

    def phase(self, name: str, total: int) -> None:
        """Ignore."""

    def advance(self, count: int) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""


def default_threads() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Options:
    """How a plan is run; none of it changes a bit of the result.

    Attributes:
        memory: bytes of tensors in flight.
        threads: worker threads.
        device: where the arithmetic is done.
        block: elements per block of elementwise methods, a multiple of 65,536.
        overwrite: replace an existing output.
        factors: a folder in which factorisations are kept for later runs.
        replay: uniform numbers to use instead of drawn ones, see `plait.tensors.randomness.Draws`.
    """

    memory: int = 1 << 30
    threads: int = field(default_factory=default_threads)
    device: str = "cpu"
    block: int = BLOCK
    overwrite: bool = False
    factors: Path | None = None
    replay: Callable[[str, str], Tensor] | None = None

    def check(self) -> None:
        """Raise RecipeError for options that cannot be used."""
        if self.threads < 1:
            raise RecipeError(f"threads is {self.threads}; it must be at least 1.")
        if self.block < 1 << 16 or self.block % (1 << 16):
            raise RecipeError(f"block is {self.block}; it must be a positive multiple of 65536.")
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            raise RecipeError(f"unknown device {self.device!r}; use cpu, cuda or cuda:N.") from None
        if kind == "cuda" and not torch.cuda.is_available():
            raise RecipeError("--device cuda: this PyTorch sees no GPU; leave the option out, or install a CUDA build.")


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


class _Budget:
    """Lets jobs start while their tensors fit into the budget; one job may always run."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.running = 0

    def take(self, need: int) -> bool:
        if self.running and self.used + need > self.total:
            return False
        self.used += need
        self.running += 1
        return True

    def give(self, need: int) -> None:
        self.used -= need
        self.running -= 1


def check_memory(plan: Plan, options: Options) -> int:
    """Return the block size that fits the budget.

    Raises:
        MemoryBudgetError: if a tensor that must be seen whole does not fit.
    """
    block = plan.block_for(options.memory, options.threads, options.block)
    largest = max(plan.jobs, key=lambda job: job.memory(block))
    need = largest.memory(block)
    if need > options.memory:
        raise MemoryBudgetError(
            f"{largest.methods[-1].name if largest.methods else 'copying'} must hold tensor {largest.name!r} "
            f"{list(largest.entry.shape)} of all models at once: {need / 2**20:,.0f} MiB, but the budget is "
            f"{options.memory / 2**20:,.0f} MiB. Pass --memory {-(-need // 2**20)}MiB or more."
        )
    return block


#: what Python, torch and this package occupy before any tensor is read
INTERPRETER = 240 << 20


def resident_memory(plan: Plan, options: Options) -> int:
    """Predict the peak of the process: the interpreter and the tensors in flight."""
    return INTERPRETER + plan.memory(check_memory(plan, options), options.threads, options.memory)


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that run torch single-threaded: parallelism is ours, and sums do not depend on the number of cores."""
    before = torch.get_num_threads()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="plait", initializer=lambda: torch.set_num_threads(1))
    try:
        torch.set_num_threads(1)
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


def _each(
    pool: ThreadPoolExecutor,
    jobs: Sequence[Job],
    work: Callable[[Job], Any],
    options: Options,
    block: int,
    stop: threading.Event,
) -> Iterator[Any]:
    """Run `work` on every job within the budget; yield results as they come; on an error stop the rest."""
    budget = _Budget(options.memory)
    # the largest first, so that no thread is left with a giant at the end; the rest in file order
    large = [job for job in jobs if job.entry.numel >= 1 << 25]
    queue = sorted(large, key=lambda j: -j.entry.numel) + [job for job in jobs if job.entry.numel < 1 << 25]
    running: dict[Future[Any], int] = {}
    position = 0
    try:
        while position < len(queue) or running:
            while position < len(queue) and len(running) < 2 * options.threads:
                need = queue[position].memory(block)
                if not budget.take(need):
                    break
                running[pool.submit(work, queue[position])] = need
                position += 1
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                budget.give(running.pop(future))
                yield future.result()
    except BaseException:
        stop.set()
        for future in running:
            future.cancel()
        wait(running)
        raise


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
        factoriser = FactorCache(options.factors) if options.factors is not None else svd
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
                        source.cache.evaluator = next(e for e in self.evaluators if e.plan is source.cache.plan)
        self.main = self.evaluators[-1]

    def survey(self, pool: ThreadPoolExecutor, store: FactStore | None = None) -> None:
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

                for part in _each(pool, jobs, work, self.options, self.block, self.stop):
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

    with _pool(options.threads) as pool:
        run.survey(pool)
        for _ in _each(pool, plan.jobs, work, options, run.block, run.stop):
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
    output = GrowingOutput(out, plan.layout, plan.fingerprint())
    try:
        result = _fill(plan, output, run, progress)
        files: dict[str, bytes] = {}
        index = plan.layout.index()
        if index is not None:
            files["model.safetensors.index.json"] = index.encode()
        if describe is not None:
            files |= describe(plan, result)
        output.finish(files)
    except DiskSpaceError:
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

    with _pool(run.options.threads) as pool:
        if todo:
            run.survey(pool, FactStore(output.partial))
            progress.phase("merging", sum(s.nbytes for job in todo for s in job.sources))
        for job, digest in _each(pool, todo, work, run.options, run.block, run.stop):
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


def open_inputs(plan: Plan) -> Sequence[Checkpoint]:
    """The checkpoints a plan reads."""
    return list(plan.inputs.values())
