"""The plan: every output tensor with its inputs, methods, dtype and cost, known from headers alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from plait.architectures import Role
from plait.checkpoints import Checkpoint, Entry, Layout, LazyTensor, is_url
from plait.methods import Method, Subject
from plait.recipes import Chain, Source

__all__ = ["ROW_BLOCK", "Job", "Plan"]

#: elements in a block of a row-wise method; fixed, because sums over blocks of another size could round differently
ROW_BLOCK = 1 << 18
_UNITS = ("element", "row", "tensor")
#: inputs from which blocks are smaller, so that those of many experts take no more memory; blocks are multiples of this
_INPUTS, _LEAST = 10, 1 << 16


@dataclass(frozen=True, eq=False)
class Job:
    """One output tensor.

    Attributes:
        entry: its name, shape and dtype.
        role: its place in the model.
        experts: the tensors to merge; for a copy, the one to copy.
        base: the base model's tensor, where the method uses one.
        methods: the steps as they apply to this tensor; empty for a copy.
        weights: the experts' weights for this tensor.
        compute: dtype of the arithmetic.
        origin: for a copy, the model it comes from.
    """

    entry: Entry
    role: Role
    experts: tuple[LazyTensor, ...]
    base: LazyTensor | None = None
    methods: tuple[Method, ...] = ()
    weights: tuple[float, ...] = ()
    compute: torch.dtype = torch.float32
    origin: str = ""

    @property
    def name(self) -> str:
        """The tensor's name in the output."""
        return self.entry.name

    @cached_property
    def subject(self) -> Subject:
        """What the methods may know about the tensor."""
        return Subject(self.entry.name, self.entry.shape, self.role)

    @property
    def copies(self) -> bool:
        """Whether the tensor is taken over byte by byte."""
        return not self.methods

    @cached_property
    def deltas(self) -> bool:
        """Whether an expert is given as a change of the base, so that all of them are seen as such."""
        return any(tensor.space == "delta" for tensor in self.experts)

    @cached_property
    def sources(self) -> tuple[LazyTensor, ...]:
        """Every tensor that is read."""
        return (*((self.base,) if self.base is not None else ()), *self.experts)

    @cached_property
    def unit(self) -> Literal["element", "row", "tensor"]:
        """The smallest piece the chain can be run on."""
        subject = self.subject
        return _UNITS[max((_UNITS.index(m.unit(subject)) for m in self.methods), default=0)]  # type: ignore[return-value]

    def block(self, preferred: int) -> int:
        """Elements per block."""
        numel = max(self.entry.numel, 1)
        if self.unit == "tensor":
            return numel
        if self.unit == "row":
            row = max(self.subject.row, 1)
            return min(numel, max(1, ROW_BLOCK // row) * row)
        most = max(preferred * _INPUTS // max(len(self.sources), _INPUTS) // _LEAST * _LEAST, _LEAST)
        return min(numel, preferred, most)

    def memory(self, preferred: int) -> int:
        """Bytes of tensors in flight while this job runs."""
        known = self._memory.get(preferred)
        if known is None:
            known = self._memory[preferred] = self._in_flight(preferred)
        return known

    @cached_property
    def _memory(self) -> dict[int, int]:
        return {}

    def _in_flight(self, preferred: int) -> int:
        if self.copies:
            return 3 * min(max(self.entry.nbytes, 1), preferred * self.entry.dtype.itemsize) + self._ahead
        subject, count = self.subject, len(self.experts)
        working = max(m.arrays(subject, count) for m in self.methods)
        handed_on = count * sum(m.kind == "sparsifier" for m in self.methods)
        # of tensors that are seen whole, the base and one expert at a time; of blocks, all of them
        inputs = (self.base is not None) + (1 if self.unit == "tensor" else count)
        arrays = inputs + 1 + working + handed_on
        own = int(self.block(preferred) * self.compute.itemsize * arrays)
        return own + max((source.memory(preferred) for source in self.sources), default=0) + self._ahead

    @property
    def _ahead(self) -> int:
        return sum(source.readahead for source in self.sources)

    @property
    def rounds(self) -> int:
        """How often the inputs are read before the last time."""
        return sum(m.rounds for m in self.methods)


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be done, and nothing of how.

    Attributes:
        source: the recipe.
        chain: its methods.
        jobs: one per output tensor, in the order of the output.
        layout: shards and offsets.
        inputs: every checkpoint that is read, by the name the recipe gives it.
        donor: the model whose config and tokenizer are carried over.
        config: the output's config.json, or None.
        dtype: the dtype most of the output has.
        notes: what was decided on the user's behalf, one sentence each.
        origin: of an adapter as output, the weights that results are changes of, where results are weights.
        files: small files of the output that stand in the place of the donor's: its tokenizer.
        tokens: a hash of the tokenizers by which rows were aligned, or nothing.
    """

    source: Source
    chain: Chain
    jobs: tuple[Job, ...]
    layout: Layout
    inputs: Mapping[str, Checkpoint]
    donor: Checkpoint
    config: dict[str, Any] | None
    dtype: torch.dtype
    notes: tuple[str, ...] = ()
    nested: tuple[Any, ...] = field(default=())
    origin: Mapping[str, LazyTensor] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    tokens: str = ""

    @property
    def recipe(self) -> Any:
        """The recipe as written."""
        return self.source.recipe

    @property
    def parameters(self) -> int:
        """Number of elements of the output."""
        return sum(job.entry.numel for job in self.jobs)

    @property
    def model_rounds(self) -> int:
        """Full passes over the inputs before anything can be merged."""
        counts = [0]
        for index, step in enumerate(self.chain.steps):
            del step
            live = [j.methods[index] for j in self.jobs if j.methods]
            if live and live[0].survey_scope == "model":
                counts.append(live[0].rounds)
        return sum(counts)

    @property
    def read_bytes(self) -> int:
        """Bytes read from all inputs, every pass counted."""
        return sum(sum(s.nbytes for s in job.sources) * (1 + job.rounds) for job in self.jobs)

    def block_for(self, memory: int, threads: int, preferred: int) -> int:
        """Largest block, at most `preferred`, with which `threads` jobs fit into `memory`."""
        block = preferred
        while block > 1 << 16 and self._peak(block, threads) > memory:
            block = max(1 << 16, block // 2 >> 16 << 16)
        return block

    def _peak(self, block: int, threads: int) -> int:
        flowing = [job.memory(block) for job in self.jobs if job.unit != "tensor"]
        return threads * max(flowing, default=0)

    def memory(self, block: int, threads: int, budget: int) -> int:
        """Bytes of tensors in flight at the peak: as many of the largest jobs as run at once, within the budget."""
        largest = sorted((job.memory(block) for job in self.jobs), reverse=True)[:threads]
        return max(largest[0], min(sum(largest), budget)) if largest else 0

    def fingerprint(self, device: str = "cpu") -> str:
        """What must be equal for a half-finished output to be continued."""
        from plait._versions import versions

        facts = {
            "versions": versions(),
            "device": torch.device(device).type,
            "recipe": self.recipe.model_dump(mode="json", by_alias=True),
            "inputs": {name: [c.label, c.stamp] for name, c in self.inputs.items()},
            "tokens": list(self._tokens()),
            "layout": [
                [s.name, [[e.name, list(e.shape), str(e.dtype)] for e in s.entries]] for s in self.layout.shards
            ],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _tokens(self) -> Iterator[str]:
        yield self.tokens
        for inner in self.nested:
            yield from inner._tokens()

    @property
    def folders(self) -> list[Path]:
        """Folders and files of this machine that the inputs lie in."""
        found: list[Path] = []
        for checkpoint in self.inputs.values():
            if isinstance(checkpoint.folder, Path):
                found.append(checkpoint.folder)
            sources = [t.source for t in checkpoint.tensors.values() if t.source != "memory"][:1]
            found += [Path(source) for source in sources if not is_url(source)]
        return found

    @property
    def urls(self) -> list[str]:
        """Where the inputs lie that are not on this machine."""
        found = [str(c.folder or next(iter(c.tensors.values())).source) for c in self.inputs.values()]
        return [place for place in found if is_url(place)]
