"""Threads, and the memory budget they share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch

from plait.engine._options import Options
from plait.engine._plan import Job, Plan
from plait.errors import MemoryBudgetError

__all__ = ["check_memory", "each", "pool", "resident_memory"]


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
INTERPRETER = 260 << 20


def resident_memory(plan: Plan, options: Options) -> int:
    """Predict the peak of the process: the interpreter and the tensors in flight."""
    return INTERPRETER + plan.memory(check_memory(plan, options), options.threads, options.memory)


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


def each(
    workers: ThreadPoolExecutor,
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
                running[workers.submit(work, queue[position])] = need
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
