"""One execution of a plan: its evaluators, its surveys, and the merge of each job, whoever calls for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import xxhash
from torch import Tensor

from plait.checkpoints import LazyTensor
from plait.engine._evaluate import Evaluator
from plait.engine._factors import FactorCache
from plait.engine._facts import FactStore
from plait.engine._hashes import InputHashes, bytes_of
from plait.engine._malloc import return_large_blocks
from plait.engine._nested import PlannedTensor
from plait.engine._options import Options, Progress
from plait.engine._plan import Job, Plan
from plait.engine._scheduler import check_memory, hold_limit
from plait.engine._side_by_side import side_by_side
from plait.engine._workers import Workers
from plait.tensors.factors import factor

__all__ = ["Run"]

#: parameters, or tensors, from which loops are compiled
_LARGE, _MANY = 1 << 24, 250
#: blocks that are read ahead of those being merged
_AHEAD = 8


class Run:
    """One execution: evaluators for the plan and its nested plans, surveys, and the merge of each job."""

    def __init__(self, plan: Plan, options: Options, progress: Progress) -> None:
        options.check()
        self.plan = plan
        self.block = check_memory(plan, options)
        self.options = options = replace(options, memory=options.budget)
        self.progress = progress
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
                hold=hold_limit(p, options, self.block) if p is plan else 0,
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
        stride = sum(source.dtype.itemsize for source in job.sources)
        for start, values in self.main.results(job, self._upcoming(job)):
            state.update(bytes_of(values))
            write(start, values)
            self.progress.advance(stride * values.numel())
        self.main.forget(job)
        return state.hexdigest()

    def merges(
        self, jobs: Sequence[Job], write: Callable[[str, int, Tensor], None]
    ) -> Iterator[tuple[Sequence[Job], list[str]]]:
        """Merge jobs in order; yield those that were written, one or many, and the hashes of what was written."""
        for run in side_by_side(jobs):
            values = self._together(run)
            if values is None:
                for job in run:
                    yield [job], [self.merge(job, lambda start, part, name=job.name: write(name, start, part))]
                continue
            write(run[0].name, 0, values)
            self.progress.advance(sum(source.nbytes for job in run for source in job.sources))
            data, ends = bytes_of(values), accumulate(job.entry.nbytes for job in run)
            parts = zip(run, ends, strict=True)
            yield run, [xxhash.xxh3_128_hexdigest(data[end - job.entry.nbytes : end]) for job, end in parts]

    def _together(self, jobs: Sequence[Job]) -> Tensor | None:
        """The results of jobs whose inputs and outputs lie side by side, if one call can compute them."""
        if self.stop.is_set():
            raise _StoppedError
        places = [self.plan.layout.places[job.name] for job in jobs]
        ends = [(shard, start + job.entry.nbytes) for job, (shard, start) in zip(jobs, places, strict=True)]
        if len(jobs) < 2 or any(a[0] is not b[0] or a[1] != b[1] for a, b in zip(ends, places[1:], strict=False)):
            return None
        return self.main.together(jobs)

    def _upcoming(self, job: Job) -> Iterator[tuple[int, int]]:
        """The blocks of a job, in order; the system is told of some more as each is taken."""
        ranges = self.main.ranges(job)
        for index, (start, stop) in enumerate(ranges):
            if self.stop.is_set():
                raise _StoppedError
            if index % _AHEAD == 0 and index + 1 < len(ranges):
                for source in job.sources:
                    source.prefetch(stop, ranges[min(index + _AHEAD, len(ranges) - 1)][1])
            yield start, stop

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
