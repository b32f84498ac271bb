"""Run a job's chain of methods on one block: the same code for surveys, merges and nested recipes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.checkpoints import LazyTensor
from plait.engine._experts import low_rank_of
from plait.engine._fusion import Fusion, read_as, same_summary
from plait.engine._hashes import InputHashes, bytes_of
from plait.engine._plan import Job, Plan
from plait.errors import NonFiniteError
from plait.kernels import Bound, Tally, Totals
from plait.methods import Combiner, Group, Modifier, Sparsifier
from plait.tensors.factors import Factors, factor
from plait.tensors.randomness import Draws
from plait.tensors.streams import Stream

__all__ = ["Evaluator"]

#: elements that are read at a time into a tensor that is seen whole
_PIECE = 1 << 20


class _Buffer:
    """Bytes at a fixed address."""

    def __init__(self, size: int) -> None:
        self.array = np.empty(max(size, 1), np.uint8)
        self.view = memoryview(self.array)  # type: ignore[arg-type]
        self.address = int(self.array.ctypes.data)


class _Scratch(threading.local):
    """Buffers of one thread, reused from block to block: fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self.buffers: dict[Any, Tensor] = {}
        self.raw: dict[int, _Buffer] = {}

    def take(self, key: Any, numel: int, dtype: torch.dtype) -> Tensor:
        """Return a buffer of at least that size, cut to it."""
        held = self.buffers.get((key, dtype))
        if held is None or held.numel() < numel or held.numel() > 4 * max(numel, 1 << 16):
            held = self.buffers[(key, dtype)] = torch.empty(max(numel, 1), dtype=dtype)
        return held[:numel]

    def buffer(self, slot: int, size: int) -> _Buffer:
        """Return a buffer of at least that many bytes."""
        held = self.raw.get(slot)
        if held is None or len(held.view) < size or len(held.view) > 4 * max(size, 1 << 18):
            held = self.raw[slot] = _Buffer(size)
        return held


class Evaluator:
    """Evaluates the jobs of one plan.

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
    ) -> None:
        self.plan = plan
        self.hashes = hashes
        self.device = torch.device(device)
        self.preferred = block
        self.replay = replay
        self.factoriser = factoriser
        self.keep = keep
        self.facts: dict[int, list[Any]] = {}
        self.fusion = Fusion(plan) if fused and self.device.type == "cpu" and replay is None else None
        self._scratch = _Scratch()
        self._tensor_facts: OrderedDict[str, dict[int, list[Any]]] = OrderedDict()
        self._lock = threading.Lock()
        self._job_locks: dict[str, threading.Lock] = {}
        self._inspected: set[int] = set()

    # --- reading -----------------------------------------------------------------------------------------------

    def _load(self, slot: int, tensor: LazyTensor, start: int, stop: int, compute: torch.dtype) -> Tensor:
        count = stop - start
        raw = tensor.read(start, stop, self._scratch.take("raw", count * tensor.dtype.itemsize, torch.uint8))
        if self.hashes is not None:
            self.hashes.update(tensor, start, count, bytes_of(raw))
        values = self._scratch.take(slot, count, compute)
        values.copy_(raw)
        if not self.plan.recipe.allow_nonfinite and count:
            _check_finite(values, tensor, start)
        return values.to(self.device) if self.device.type != "cpu" else values

    def _stored(self, slot: int, tensor: LazyTensor, start: int, stop: int, note: bool = True) -> int:
        """Read one block for a kernel, into a buffer of its own; return the buffer's address."""
        count = stop - start
        buffer = self._scratch.buffer(slot, count * tensor.dtype.itemsize)
        view = buffer.view[: count * tensor.dtype.itemsize]
        tensor.fill(start, stop, view)
        if self.hashes is not None and note:
            self.hashes.update(tensor, start, count, view)
        wanted = read_as(tensor.dtype)
        if wanted is tensor.dtype:
            return buffer.address
        raw = torch.frombuffer(view, dtype=tensor.dtype) if count else torch.empty(0, dtype=tensor.dtype)
        return self._scratch.take(("wide", slot), count, wanted).copy_(raw).data_ptr()

    def _pieces(self, tensor: LazyTensor) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, tensor.numel, _PIECE):
            scratch = self._scratch.take("raw", _PIECE * tensor.dtype.itemsize, torch.uint8)
            yield start, tensor.read(start, min(start + _PIECE, tensor.numel), scratch)

    def _inspect(self, job: Job) -> None:
        """Hash and check inputs that will be read several times: once, and before minutes are spent on the first."""
        for tensor in (part for source in job.sources for part in source.parts):
            with self._lock:
                if id(tensor) in self._inspected:
                    continue
            for start, raw in self._pieces(tensor):
                if self.hashes is not None:
                    self.hashes.update(tensor, start, raw.numel(), bytes_of(raw))
                if raw.dtype.is_floating_point and not self.plan.recipe.allow_nonfinite:
                    _check_finite(raw, tensor, start)
            with self._lock:
                self._inspected.add(id(tensor))

    def _load_whole(self, tensor: LazyTensor, job: Job) -> Tensor:
        """Read a whole tensor piece by piece into fresh memory, so that no second copy of it lies beside."""
        values = torch.empty(tensor.numel, dtype=job.compute, device=self.device)
        for start, raw in self._pieces(tensor):
            values[start : start + raw.numel()].copy_(raw)
        return values.view(job.entry.shape)

    def _group(self, job: Job, start: int, stop: int) -> Group:
        shape = self._shape(job, stop - start)
        experts: Sequence[Tensor]
        if job.unit == "tensor":
            self._inspect(job)
            base = self._load_whole(job.base, job) if job.base is not None else None
            experts = Stream(
                len(job.experts), lambda i: self._change(self._load_whole(job.experts[i], job), i, job, base)
            )
        else:
            base = self._load(0, job.base, start, stop, job.compute) if job.base is not None else None
            loaded = [self._load(i + 1, t, start, stop, job.compute) for i, t in enumerate(job.experts)]
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
        for job in jobs:
            if self.chained(job):
                part = self._total(job, step, self.facts_before(job, step), tally)
                total = part if total is None else total if part is None else total + part
            if done is not None:
                done(job)
        return total

    def _total(self, job: Job, step: int, facts: dict[int, list[Any]], tally: Tally | None = None) -> Any:
        """Survey one job; what a kernel adds up for many jobs alike stays in the tally."""
        bound = self.kernel(job, step, facts)
        if bound is None or not self.proven(bound, job, step, facts):
            return self._in_blocks(job, step, facts, self.ranges(job))
        totals = Totals(bound) if tally is None else tally.of(bound)
        self.collect(bound, job, totals, self.ranges(job))
        return totals.fill(bound.tree) if tally is None else None

    def _in_blocks(self, job: Job, step: int, facts: dict[int, list[Any]], ranges: Sequence[tuple[int, int]]) -> Any:
        total: Any = None
        for start, stop in ranges:
            part = self.surveyed(job, self._group(job, start, stop), facts, step)
            total = part if total is None else total + part
        return total

    def surveyed(self, job: Job, group: Group, facts: dict[int, list[Any]], step: int) -> Any:
        """What one group contributes to the present round of a step's survey."""
        before = self._run(job, group, facts, step)
        return job.methods[step].survey(before.with_facts(tuple(facts.get(step, ()))))

    # --- kernels -----------------------------------------------------------------------------------------------

    def kernel(self, job: Job, step: int | None, facts: dict[int, list[Any]]) -> Bound | None:
        """The compiled loop of a job's merge, or of its survey at a step."""
        if self.fusion is None or self.plan.recipe.allow_nonfinite or job.deltas:
            return None

        def run(job: Job, group: Group) -> Any:
            if step is None:
                return self._run(job, group, facts, len(job.methods)).merged
            return self.surveyed(job, group, facts, step)

        own = any(index not in self.facts for index in facts)
        bound = self.fusion.find(job, step, facts, own, run)
        return None if bound is None or bound.kernel.proven is False else bound

    def proven(self, bound: Bound, job: Job, step: int, facts: dict[int, list[Any]] | None = None) -> bool:
        """Compare a survey's kernel with torch on the first block, once."""
        assert self.fusion is not None
        if bound.kernel.proven is None:
            first = self.ranges(job)[:1]
            trial = Totals(bound)
            self.collect(bound, job, trial, first, note=False)
            expected = self._in_blocks(job, step, self.facts_before(job, step) if facts is None else facts, first)
            bound.kernel.proven = same_summary(trial.fill(bound.tree), expected)
            if not bound.kernel.proven:
                self.fusion.differs(job)
        return bound.kernel.proven

    def collect(
        self, bound: Bound, job: Job, totals: Totals, ranges: Sequence[tuple[int, int]], note: bool = True
    ) -> None:
        """Run a survey's kernel over blocks of a job; `note` whether the inputs' hashes are taken along."""
        assert self.fusion is not None
        keys = self.fusion.keys(bound, job)
        for start, stop in ranges:
            inputs = [self._stored(i, t, start, stop, note) for i, t in enumerate(job.sources)]
            if bound.run(inputs, stop - start, None, start, keys, totals):
                self._group(job, start, stop)  # names the tensor that is not finite

    def _fused_block(self, bound: Bound, keys: Any, job: Job, start: int, stop: int) -> Tensor | None:
        """Run a merge's kernel; None where the result is not finite, or not torch's."""
        assert self.fusion is not None
        inputs = [self._stored(i, t, start, stop) for i, t in enumerate(job.sources)]
        written = bound.kernel.output
        assert written is not None
        out = self._scratch.take("out", stop - start, written)
        if bound.run(inputs, stop - start, out.data_ptr(), start, keys):
            return None
        result = out if written is job.entry.dtype else out.to(job.entry.dtype)
        if written is not job.entry.dtype and not _finite(result):
            return None
        if bound.kernel.proven is None:
            bound.kernel.proven = torch.equal(_bits(result), _bits(self._expected(job, start, stop)))
            if not bound.kernel.proven:
                self.fusion.differs(job)
                return None
        return result

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
                        both = self.two_rounds(job, index)
                    if both is not None:
                        known[index] += both
                        continue
                    known[index].append(self._total(job, index, facts))
            return {index: known[index] for index in wanted}

    def two_rounds(self, job: Job, step: int) -> tuple[Any, Any] | None:
        """The first two rounds of one tensor's survey from one pass, where that is possible."""
        from plait.engine._rounds import two_rounds

        return two_rounds(self, [job], step, lambda jobs, work: [work(jobs)], lambda _: None)

    def forget(self, job: Job) -> None:
        """Drop what was kept about one tensor."""
        with self._lock:
            self._tensor_facts.pop(job.name, None)
            self._job_locks.pop(job.name, None)
        if self.fusion is not None:
            self.fusion.forget(job)

    def _expected(self, job: Job, start: int, stop: int) -> Tensor:
        return self._eager(job, self._tensor_level(job, len(job.methods)) | self.facts, start, stop)

    # --- merging -----------------------------------------------------------------------------------------------

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

    def computing(self, job: Job) -> Callable[[int, int], Tensor]:
        """Prepare a job; return what computes the flat result of one block, in the output's dtype, on the CPU.

        The result may lie in a buffer that the next block is computed in.
        """
        if job.copies:
            return lambda start, stop: self._copied(job, start, stop)
        facts = self._tensor_level(job, len(job.methods)) | self.facts
        bound = self.kernel(job, None, facts)
        if bound is None or self.fusion is None:
            return lambda start, stop: self._eager(job, facts, start, stop)
        loop, keys = bound, self.fusion.keys(bound, job)

        def compute(start: int, stop: int) -> Tensor:
            result = self._fused_block(loop, keys, job, start, stop) if loop.kernel.proven is not False else None
            return self._eager(job, facts, start, stop) if result is None else result

        return compute

    def block(self, job: Job, start: int, stop: int) -> Tensor:
        """Return the flat result of one block."""
        return self.computing(job)(start, stop)

    def _eager(self, job: Job, facts: dict[int, list[Any]], start: int, stop: int) -> Tensor:
        last = len(job.methods)
        merged = self._run(job, self._group(job, start, stop), facts, last).merged
        assert merged is not None
        result = merged.reshape(-1).to(job.entry.dtype)
        if result.device.type != "cpu":
            result = result.cpu()
        if result.numel() and not self.plan.recipe.allow_nonfinite:
            _check_result(result, merged, job)
        return result

    def _copied(self, job: Job, start: int, stop: int) -> Tensor:
        source = job.experts[0]
        raw = source.read(start, stop)
        if self.hashes is not None:
            self.hashes.update(source, start, stop - start, bytes_of(raw))
        strict = raw.dtype.is_floating_point and raw.numel() and not self.plan.recipe.allow_nonfinite
        if strict:
            _check_finite(raw, source, start)
        result = raw.to(job.entry.dtype)
        if strict:
            _check_result(result, raw, job)
        return result

    def whole(self, job: Job) -> Tensor:
        """Return a whole flat tensor."""
        result = torch.empty(job.entry.numel, dtype=job.entry.dtype)
        compute = self.computing(job)
        for start, stop in self.ranges(job):
            result[start:stop] = compute(start, stop)
        return result


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _finite(values: Tensor) -> bool:
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _check_finite(values: Tensor, tensor: LazyTensor, start: int) -> None:
    if _finite(values):
        return
    bad = ~torch.isfinite(values)
    index = start + int(bad.to(torch.uint8).argmax())
    kind = "NaN" if bool(torch.isnan(values).any()) else "infinity"
    raise NonFiniteError(
        f"tensor {tensor.name!r} in {tensor.source} holds {kind}: {int(bad.sum())} of the values read so far, the "
        f"first at flat index {index}. The model is damaged; use another, or set allow_nonfinite: true to merge it "
        "as it is."
    )


def _check_result(result: Tensor, merged: Tensor, job: Job) -> None:
    if _finite(result):
        return
    if _finite(merged):
        raise NonFiniteError(
            f"tensor {job.name!r} does not fit into {job.entry.dtype}: its values reach "
            f"{float(merged.abs().max()):.4g}. Choose dtype: bfloat16 or float32."
        )
    raise NonFiniteError(
        f"merging tensor {job.name!r} gave NaN or infinity although its inputs are finite; check the weights and "
        "parameters, or set allow_nonfinite: true."
    )
