"""Which compiled loop computes a job: traced once, built once, compared with torch once."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.engine._plan import Job, Plan
from plait.kernels import INPUTS, Bound, Graph, Kernel, Pending, Traced, Untraceable, build, device_kernel, source_of
from plait.methods import Group, Subject
from plait.tensors.randomness import SEGMENT, key_of

__all__ = ["Fusion", "read_as", "same_summary"]

Run = Callable[[Job, Group], Any]
_LENGTH, _ROWS = 1 << 16, 61  # of the stand-ins, in elements or rows; no method may see it


def _cpu() -> float:
    """CPU seconds of this thread and of finished child processes."""
    children = os.times()
    return time.thread_time() + children.children_user + children.children_system


class _Watched:
    """A job's subject, which remembers what was asked about it."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._subject, name)


@dataclass
class _TracedDraws:
    """A source of random numbers that only notes who asked."""

    graph: Graph
    shape: tuple[int, ...]
    known: dict[str, int] = field(default_factory=dict)

    def uniform(self, expert: str, offset: int, length: int) -> Tensor:
        """Return the stand-in for one expert's numbers."""
        del offset, length
        if expert not in self.known:
            self.known[expert] = len(self.graph.draws)
            self.graph.draws.append(expert)
        return Traced.of(self.graph, self.graph.add("uniform", (), torch.float32, self.known[expert]), *self.shape)


def read_as(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a kernel gets, or leaves, numbers that are stored as `dtype`."""
    return dtype if dtype in INPUTS else torch.float32


class Fusion:
    """The kernels of one plan.

    Attributes:
        built: number of kernels that were compiled by this process.
        spent: wall and CPU seconds of tracing and compiling, the compiler's own included.
        refused: reasons why something runs in blocks, with how often.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan = plan
        self._device = device
        self.refused: dict[str, int] = {}
        self.built = 0
        self.spent = (0.0, 0.0)
        #: by what is computed, what was asked about the tensor, and the answers
        self._shared: dict[Any, dict[tuple[str, ...], dict[Any, tuple[Bound | None, Any]]]] = {}
        self._own: dict[str, dict[Any, tuple[Bound | None, Any]]] = {}
        self._kernels: dict[Any, Kernel | None] = {}
        self._lock = threading.RLock()

    def find(self, job: Job, step: int | None, facts: Mapping[int, Sequence[Any]], own: bool, run: Run) -> Bound | None:
        """Return the kernel of a job's merge (`step` None) or of its survey, with its numbers; None for blocks.

        Args:
            job: what to compute.
            step: the step that surveys.
            facts: what its steps know; by identity part of what is remembered.
            own: whether some of the facts are this job's alone.
            run: computes the merged values, or the survey, of a group.
        """
        if job.compute != torch.float32 or job.unit == "tensor" or not job.entry.numel:
            return None
        inputs = tuple(read_as(source.dtype) for source in job.sources)
        output = read_as(job.entry.dtype) if step is None else None
        known = tuple((k, tuple(id(f) for f in v)) for k, v in sorted(facts.items()))
        key = (step, job.methods, job.weights, inputs, output, known, job.subject.row if job.unit == "row" else None)
        with self._lock:
            found = self._remembered(job, key)
            if found is not None:
                return found[0]
            wall, cpu = time.perf_counter(), _cpu()
            bound, asked = self._trace(job, inputs, output, run)
            self.spent = (self.spent[0] + time.perf_counter() - wall, self.spent[1] + _cpu() - cpu)
            # the facts are kept as well, so that their identities stay theirs
            if own or "name" in asked:
                self._own.setdefault(job.name, {})[key] = (bound, dict(facts))
            else:
                names = tuple(sorted(asked))
                if bound is not None:
                    bound.general = not names
                answers = tuple(getattr(job.subject, name) for name in names)
                self._shared.setdefault(key, {}).setdefault(names, {})[answers] = (bound, dict(facts))
            return bound

    def _remembered(self, job: Job, key: Any) -> tuple[Bound | None, Any] | None:
        for names, table in self._shared.get(key, {}).items():
            found = table.get(tuple(getattr(job.subject, name) for name in names))
            if found is not None:
                return found
        return self._own.get(job.name, {}).get(key)

    @property
    def kernels(self) -> int:
        """Number of kernels in use."""
        return sum(kernel is not None and kernel.proven is not False for kernel in self._kernels.values())

    def forget(self, job: Job) -> None:
        """Drop what was remembered for one tensor alone."""
        with self._lock:
            self._own.pop(job.name, None)

    def follow(self, job: Job, run: Run) -> tuple[Graph, Any, set[str]]:
        """Trace a computation; return its graph, what it returned, and what it asked about the tensor.

        Raises:
            Untraceable: if it can be computed neither by elements nor by rows.
        """
        graph = Graph(row=max(job.subject.row, 1) if job.unit == "row" else None)
        shape = (_LENGTH,) if graph.row is None else (_ROWS, graph.row)
        subject = _Watched(job.subject)
        count = len(job.sources)
        stands = [Traced.of(graph, graph.add("input", (), torch.float32, i), *shape) for i in range(count)]
        base = stands.pop(0) if job.base is not None else None
        names = self.plan.chain.experts if len(stands) == len(self.plan.chain.experts) else (job.origin,)
        draws = _TracedDraws(graph, shape)
        group = Group(subject, base, tuple(stands), names, job.weights, draws=draws)  # type: ignore[arg-type]
        try:
            return graph, run(job, group), subject.asked
        except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
            raise Untraceable(f"{type(error).__name__}: {str(error).splitlines()[0][:100]}", subject.asked) from None
        except Untraceable as reason:
            raise Untraceable(str(reason), subject.asked) from None

    def _trace(
        self, job: Job, inputs: tuple[torch.dtype, ...], output: torch.dtype | None, run: Run
    ) -> tuple[Bound | None, set[str]]:
        try:
            graph, found, asked = self.follow(job, run)
            if output is not None:
                if not isinstance(found, Traced) or found.dtype != torch.float32:
                    raise Untraceable("a result that is no float32 tensor", asked)
                graph.output = found.node
            kernel = self.kernel(graph, inputs, output)
        except Untraceable as reason:
            return self._refuse(str(reason.args[0])), reason.args[1] if len(reason.args) > 1 else {"name"}
        if kernel is None:
            return self._refuse("no compiler"), set()
        return Bound(kernel, graph, None if output is not None else found), asked

    def differs(self, job: Job) -> None:
        """Take note that this compiler or processor rounds otherwise than torch."""
        self._refuse(f"compiled code that differs from torch (first seen at {job.name})")

    def _refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def kernel(self, graph: Graph, inputs: tuple[torch.dtype, ...], output: torch.dtype | None) -> Kernel | None:
        """Return the compiled loop of a graph; None without a compiler."""
        key = (graph.structure, inputs, output)
        if key not in self._kernels:
            made = self._made(graph, inputs, output)
            self.built += made is not None and made.fresh
            self._kernels[key] = made
        return self._kernels[key]

    def _made(self, graph: Graph, inputs: tuple[torch.dtype, ...], output: torch.dtype | None) -> Kernel | None:
        if self._device.type != "cpu":
            return device_kernel(graph, inputs, output, SEGMENT, self._device)
        made = build(source_of(graph, inputs, output, SEGMENT))
        return None if made is None else Kernel(made[0], inputs, output, made[1])

    def keys(self, bound: Bound, job: Job) -> Any:
        """The random generator's keys for one job."""
        if not bound.experts:
            return None
        keys = [key_of(self.plan.recipe.seed, job.name, str(expert)) for expert in bound.experts]
        return np.frombuffer(b"".join(keys), np.uint64)


def same_summary(a: Any, b: Any) -> bool:
    """Whether two surveys found the same, to the bit."""
    if type(a) is not type(b) or isinstance(a, Pending):
        return False
    if torch.is_tensor(a):
        return a.dtype is b.dtype and torch.equal(a, b)
    if type(a) is dict:
        return a.keys() == b.keys() and all(same_summary(value, b[key]) for key, value in a.items())
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(same_summary, a, b))
    if dataclasses.is_dataclass(a):
        return all(same_summary(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b)
