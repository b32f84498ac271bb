"""Threads, and the memory budget they share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from plait.engine._fusion import read_as
from plait.engine._options import Options
from plait.engine._plan import Job, Plan
from plait.errors import MemoryBudgetError

__all__ = [
    "Bundle",
    "bundles",
    "check_memory",
    "each",
    "hold_limit",
    "holdable",
    "input_bytes",
    "pool",
    "resident_memory",
]


#: elements from which a tensor is started first; elements and tensors of a bundle of small ones
_LARGE, _BUNDLE, _MOST = 1 << 25, 1 << 18, 256
#: bytes of inputs that a thread keeps, at most, from the survey of a tensor to its merge
_HOLD = 40 << 20


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
    budget = options.budget
    block = plan.block_for(budget, options.threads, options.preferred_block)
    largest = max(plan.jobs, key=lambda job: job.memory(block))
    need = largest.memory(block)
    if need > budget:
        what = (
            f"{largest.methods[-1].name if largest.methods else 'copying'} must hold tensor {largest.name!r} "
            f"{list(largest.entry.shape)} of all models at once: {need / 2**20:,.0f} MiB, but "
        )
        if need <= options.memory:
            raise MemoryBudgetError(
                f"{what}{options.device} has room for {budget / 2**20:,.0f} MiB now. Close what else uses it, or "
                "compute with --device cpu."
            )
        raise MemoryBudgetError(
            f"{what}the budget is {options.memory / 2**20:,.0f} MiB. Pass --memory {-(-need // 2**20)}MiB or more."
        )
    return block


#: what Python, torch and this package occupy before any tensor is read
INTERPRETER = 260 << 20


def resident_memory(plan: Plan, options: Options) -> int:
    """Predict the peak of the process: the interpreter and the tensors in flight."""
    block = check_memory(plan, options)
    limit = hold_limit(plan, options, block)
    kept = max((n for job in plan.jobs if limit and holdable(job) and (n := input_bytes(job)) <= limit), default=0)
    return INTERPRETER + plan.memory(block, options.threads, options.memory) + options.threads * kept


def input_bytes(job: Job) -> int:
    """Bytes of all inputs of a job, as they are stored."""
    return sum(source.nbytes for source in job.sources)


def holdable(job: Job) -> bool:
    """Whether a tensor is surveyed by itself, by loops that read what is stored: then it pays to keep its inputs."""
    surveyed = any(m.rounds and m.survey_scope == "tensor" for m in job.methods) and job.unit != "tensor"
    return surveyed and all(read_as(source.dtype) is source.dtype for source in job.sources)


def hold_limit(plan: Plan, options: Options, block: int) -> int:
    """Bytes of inputs that each thread may keep beside what its blocks take, within the budget."""
    if options.device != "cpu" or not any(holdable(job) for job in plan.jobs):
        return 0
    flowing = max((job.memory(block) for job in plan.jobs), default=0)
    return max(0, min(_HOLD, options.memory // options.threads - flowing))


@contextmanager
def pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that run torch single-threaded: parallelism is ours, and sums do not depend on the number of cores."""
    before = torch.get_num_threads()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="plait", initializer=lambda: torch.set_num_threads(1))
    try:
        torch.set_num_threads(1)
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Bundle:
    """Jobs that one worker does after each other: one large tensor, or many small ones.

    Attributes:
        jobs: in file order.
        memory: bytes of tensors in flight.
    """

    jobs: tuple[Job, ...]
    memory: int


def bundles(jobs: Sequence[Job], block: int) -> list[Bundle]:
    """Group jobs into pieces of work: the largest first, so that no thread is left with a giant at the end.

    The rest stays in file order.
    """
    large = sorted((job for job in jobs if job.entry.numel >= _LARGE), key=lambda j: -j.entry.numel)
    found = [Bundle((job,), job.memory(block)) for job in large]
    group: list[Job] = []
    size = need = 0
    for job in jobs:
        if job.entry.numel >= _LARGE:
            continue
        if group and (size + job.entry.numel > _BUNDLE or len(group) >= _MOST):
            found.append(Bundle(tuple(group), need))
            group.clear()
            size = need = 0
        group.append(job)
        size += job.entry.numel
        need = max(need, job.memory(block))
    return [*found, Bundle(tuple(group), need)] if group else found


def each(
    workers: ThreadPoolExecutor,
    parts: Sequence[Bundle],
    work: Callable[[Bundle], Any],
    options: Options,
    stop: threading.Event,
) -> Iterator[Any]:
    """Run `work` on every bundle within the budget; yield results as they come; on an error stop the rest."""
    budget = _Budget(options.memory)
    running: dict[Future[Any], int] = {}
    position = 0
    try:
        while position < len(parts) or running:
            while position < len(parts) and len(running) < 2 * options.threads:
                need = parts[position].memory
                if not budget.take(need):
                    break
                running[workers.submit(work, parts[position])] = need
                position += 1
            # with a limit: a signal that comes just before the thread falls asleep does not wake it up
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                budget.give(running.pop(future))
                yield future.result()
    except BaseException:
        stop.set()
        for future in running:
            future.cancel()
        while wait(running, timeout=0.5).not_done:
            pass
        raise
