"""Run a job's chain of methods on blocks, and find out what its methods must know first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plait.engine._device import at_home, named_memory
from plait.engine._device_loops import DeviceLoops
from plait.engine._experts import low_rank_of
from plait.engine._fusion import Fusion
from plait.engine._hashes import InputHashes
from plait.engine._loops import Loops, Proving
from plait.engine._plan import Job, Plan
from plait.engine._read import Reader
from plait.engine._rounds import two_rounds
from plait.engine._side_by_side import side_by_side
from plait.kernels import BUILDERS, Bound, Tally
from plait.methods import Combiner, Group, Modifier, Sparsifier
from plait.tensors.factors import Factors, factor
from plait.tensors.randomness import Draws
from plait.tensors.streams import Stream

__all__ = ["Surveys"]


class Surveys:
    """The groups that methods see, and what is learned of them before anything is merged.

    Attributes:
        facts: for each step of the chain with a model-wide survey, the totals of its finished rounds.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        hashes: InputHashes | None = None,
        device: str = "cpu",
        block: int = 1 << 18,
        replay: Callable[[str, str], Tensor] | None = None,
        factoriser: Callable[[Tensor], Factors] = factor,
        keep: int = 16,
        fused: bool = False,
        hold: int = 0,
    ) -> None:
        self.plan = plan
        self.device = torch.device(device)
        self.preferred = block
        self.replay = replay
        self.factoriser = factoriser
        self.keep = keep
        self.facts: dict[int, list[Any]] = {}
        here = self.device.type == "cpu"
        fused = fused and replay is None and (here or self.device.type in BUILDERS)
        self.fusion = Fusion(plan, self.device) if fused else None
        self._strict = not plan.recipe.allow_nonfinite
        self._reader = Reader(hashes, self.device, self._strict, hold)
        self.loops: Proving | None = None
        if self.fusion is not None and here:
            self.loops = Loops(self.fusion, self._reader, self._group)
        elif self.fusion is not None:
            self.loops = DeviceLoops(self.fusion, self._reader)
        self._tensor_facts: OrderedDict[str, dict[int, list[Any]]] = OrderedDict()
        self._lock = threading.Lock()
        self._job_locks: dict[str, threading.Lock] = {}

    # --- blocks ------------------------------------------------------------------------------------------------

    def _group(self, job: Job, start: int, stop: int) -> Group:
        shape = self._shape(job, stop - start)
        experts: Sequence[Tensor]
        if job.unit == "tensor":
            self._reader.inspect(job)
            base = self._reader.whole(job.base, job) if job.base is not None else None
            experts = Stream(
                len(job.experts), lambda i: self._change(self._reader.whole(job.experts[i], job), i, job, base)
            )
        else:
            base = self._reader.load(0, job.base, start, stop, job.compute) if job.base is not None else None
            loaded = [self._reader.load(i + 1, t, start, stop, job.compute) for i, t in enumerate(job.experts)]
            experts = tuple(self._change(expert, i, job, base).view(shape) for i, expert in enumerate(loaded))
        return Group(
            job.subject,
            None if base is None else base.view(shape),
            experts,
            self.plan.chain.experts if len(experts) == len(self.plan.chain.experts) else (job.origin,),
            job.weights,
            offset=start,
            draws=Draws(self.plan.recipe.seed, job.name, self.replay),
            factoriser=self.factoriser,
            given_deltas=job.deltas,
            low_rank=low_rank_of(job, self.device) if job.unit == "tensor" else None,
            exact=all(tensor.space == "delta" for tensor in job.experts),
        )

    @staticmethod
    def _change(values: Tensor, index: int, job: Job, base: Tensor | None) -> Tensor:
        """What an expert that is a weight changes, where others are given as changes."""
        weight = job.deltas and base is not None and job.experts[index].space == "weight"
        return values.sub_(base) if weight and base is not None else values

    def _shape(self, job: Job, count: int) -> tuple[int, ...]:
        match job.unit:
            case "tensor":
                return job.entry.shape
            case "row":
                row = max(job.subject.row, 1)
                return (count // row, row)
            case _:
                return (count,)

    def ranges(self, job: Job) -> list[tuple[int, int]]:
        """The blocks of a job, in order."""
        numel = job.entry.numel
        step = job.block(self.preferred)
        return [(i, min(i + step, numel)) for i in range(0, numel, step)]

    # --- surveys -----------------------------------------------------------------------------------------------

    def model_rounds(self) -> list[int]:
        """Indices of the steps whose survey runs over the whole model, once per round still to be done, in order."""
        steps: list[int] = []
        for index in range(len(self.plan.chain.steps)):
            live = [job.methods[index] for job in self.plan.jobs if self.chained(job)]
            if live and live[0].survey_scope == "model":
                steps += [index] * live[0].rounds
        return steps

    def chained(self, job: Job) -> bool:
        """Whether the whole chain is applied to a tensor."""
        return len(job.methods) == len(self.plan.chain.steps) and not job.origin

    def survey(self, jobs: Sequence[Job], step: int, tally: Tally, done: Callable[[Job], None] | None = None) -> Any:
        """Add up what some jobs contribute to the present round of a model-wide survey.

        What kernels count goes to `tally`, the rest is returned.
        """
        total: Any = None
        for run in side_by_side(jobs):
            together = len(run) > 1 and self._counted_together(run, step, tally)
            for job in run:
                if self.chained(job) and not together:
                    part = self._total(job, step, self.facts_before(job, step), tally)
                    total = part if total is None else total if part is None else total + part
                if done is not None:
                    done(job)
        return total

    def _counted_together(self, jobs: Sequence[Job], step: int, tally: Tally) -> bool:
        """Survey jobs that lie side by side as if they were one, where that comes to the same."""
        bound = self.joined(jobs[0], step, self.facts_before(jobs[0], step)) if self.chained(jobs[0]) else None
        if bound is None or not isinstance(self.loops, Loops):
            return False
        self.loops.collect_together(bound, jobs, tally.of(bound))
        return True

    def _total(self, job: Job, step: int, facts: dict[int, list[Any]], tally: Tally | None = None) -> Any:
        """Survey one job; what a kernel adds up for many jobs alike stays in the tally."""
        bound = self.kernel(job, step, facts)
        if bound is None or not self.proven(bound, job, step, facts):
            return self._in_blocks(job, step, facts, self.ranges(job))
        assert self.loops is not None
        totals = bound.totals() if tally is None else tally.of(bound)
        self.loops.collect(bound, job, totals, self.ranges(job))
        if tally is not None:
            return None
        found = totals.fill(bound.tree)
        totals.release()
        return found

    def _in_blocks(self, job: Job, step: int, facts: dict[int, list[Any]], ranges: Sequence[tuple[int, int]]) -> Any:
        total: Any = None
        for start, stop in ranges:
            part = self._part(job, step, facts, start, stop)
            total = part if total is None else total + part
        return total

    def _part(self, job: Job, step: int, facts: dict[int, list[Any]], start: int, stop: int) -> Any:
        """What one block contributes to a survey, in the processor's memory."""
        transfers = self._reader.transfers
        if transfers is None:
            return self.surveyed(job, self._group(job, start, stop), facts, step)
        lane = transfers.lane
        with lane.work(), named_memory(job, self.device):
            part = at_home(self.surveyed(job, self._group(job, start, stop), facts, step))
            if not lane.sound():
                self._reader.complain(job, start, stop)
        return part

    def surveyed(self, job: Job, group: Group, facts: dict[int, list[Any]], step: int) -> Any:
        """What one group contributes to the present round of a step's survey."""
        before = self._run(job, group, facts, step)
        return job.methods[step].survey(before.with_facts(tuple(facts.get(step, ()))))

    # --- kernels -----------------------------------------------------------------------------------------------

    def kernel(self, job: Job, step: int | None, facts: dict[int, list[Any]]) -> Bound | None:
        """The compiled loop of a job's merge, or of its survey at a step."""
        if self.fusion is None or not self._strict or job.deltas:
            return None

        def run(job: Job, group: Group) -> Any:
            if step is None:
                return self._run(job, group, facts, len(job.methods)).merged
            return self.surveyed(job, group, facts, step)

        own = any(totals and index not in self.facts for index, totals in facts.items())
        bound = self.fusion.find(job, step, facts, own, run)
        return None if bound is None or bound.kernel.proven is False else bound

    def joined(self, job: Job, step: int | None, facts: dict[int, list[Any]]) -> Bound | None:
        """The compiled loop of a job, if it has proven itself and may run over others like this one as well."""
        bound = self.kernel(job, step, facts) if isinstance(self.loops, Loops) else None
        return bound if bound is not None and bound.joins and bound.kernel.proven else None

    def proven(self, bound: Bound, job: Job, step: int, facts: dict[int, list[Any]] | None = None) -> bool:
        """Compare a survey's loop with torch on the first elements, once."""
        assert self.loops is not None
        known = self.facts_before(job, step) if facts is None and bound.kernel.proven is None else facts or {}
        return self.loops.proven(bound, job, lambda start, stop: self._part(job, step, known, start, stop))

    def facts_before(self, job: Job, step: int) -> dict[int, list[Any]]:
        """Facts that a step's survey may rely on: the model's, and the tensor's own of the steps before it."""
        return self._tensor_level(job, step) | {k: v for k, v in self.facts.items() if k <= step}

    def _tensor_level(self, job: Job, before: int) -> dict[int, list[Any]]:
        """Run the tensor-wide surveys of the first `before` steps of one job, once."""
        wanted = [
            i
            for i, m in enumerate(job.methods[:before])
            if m.rounds and (m.survey_scope == "tensor" or not self.chained(job))
        ]
        if not wanted or not job.entry.numel:
            return {}
        if self.fusion is not None:
            self._reader.hold(job)
        with self._lock:
            lock = self._job_locks.setdefault(job.name, threading.Lock())
        with lock:
            with self._lock:
                known = self._tensor_facts.setdefault(job.name, {})
                self._tensor_facts.move_to_end(job.name)
                while len(self._tensor_facts) > self.keep:
                    self._tensor_facts.popitem(last=False)
            for index in wanted:
                while len(known.setdefault(index, [])) < job.methods[index].rounds:
                    facts = {**self.facts, **known}
                    both = None
                    if not known[index]:
                        both = two_rounds(self, [job], index, lambda jobs, work: [work(jobs)], lambda _: None)
                    if both is not None:
                        known[index] += both
                        continue
                    known[index].append(self._total(job, index, facts))
            return {index: known[index] for index in wanted}

    def forget(self, job: Job) -> None:
        """Drop what was kept about one tensor."""
        with self._lock:
            self._tensor_facts.pop(job.name, None)
            self._job_locks.pop(job.name, None)
        self._reader.release(job)
        if self.fusion is not None:
            self.fusion.forget(job)

    def _run(self, job: Job, group: Group, facts: dict[int, list[Any]], until: int) -> Group:
        """Run the steps before `until`; a combiner's or modifier's result stands in `group.merged`."""
        for index, method in enumerate(job.methods[:until]):
            group = group.with_facts(tuple(facts.get(index, ())))
            if isinstance(method, Sparsifier):
                group = group.with_deltas(method.sparsify(group))
            elif isinstance(method, Combiner):
                group = replace(group, merged=method.merge(group))
            elif isinstance(method, Modifier):
                group = replace(group, merged=method.adjust(group))
        return group
