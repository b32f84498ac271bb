"""A compiled graph at work: addresses in, flags out; what surveys add up."""

from __future__ import annotations

import ctypes
import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plait.kernels._emit import room
from plait.kernels._graph import Graph, Sink
from plait.kernels._sinks import BINS, SUMS, TABLES, WINDOWS
from plait.kernels._trace import Pending
from plait.tensors.selection import Counts
from plait.tensors.sums import SEGMENT, ExactSum

__all__ = ["Bound", "Kernel", "Tally", "Totals", "Window", "fill"]

_BATCH = 1 << 30  # elements after which 32-bit counts are moved on
_PAGE = 1 << 10  # bins that are moved on, or not, together: most were never counted in
_KEPT = 8  # zeroed tables of one size that are kept: fresh memory costs more than counting a small tensor
_spare: dict[int, list[Any]] = {}
_lock = threading.Lock()


class Kernel:
    """One compiled structure.

    Attributes:
        inputs: dtype of every input as the kernel reads it.
        output: dtype it writes; None for a survey.
        proven: whether its result has been compared with torch's in this process; None: not yet.
        fresh: whether it was compiled in this process.
        totals: makes what a survey adds up in.
    """

    def __init__(
        self,
        function: Any,
        inputs: tuple[torch.dtype, ...],
        output: torch.dtype | None,
        fresh: bool = False,
        totals: Callable[[Bound], Totals] | None = None,
    ) -> None:
        self.function = function
        self.inputs = inputs
        self.output = output
        self.proven: bool | None = None
        self.fresh = fresh
        self.totals: Callable[[Bound], Totals] = totals or Totals


@dataclass(frozen=True)
class Window:
    """Counts at full resolution inside a few neighbouring bins, and how many elements lie above these."""

    above: int
    counts: Counts

    def __add__(self, other: Window) -> Window:
        return Window(self.above + other.above, self.counts + other.counts)


class _Place:
    """Memory of one sink that counts in bins: 32-bit counts of the kernel, moved on now and then."""

    def __init__(self, sink: Sink, integers: Sequence[int]) -> None:
        self.window = sink.kind in WINDOWS
        width = 1
        if sink.kind.startswith("window"):
            assert sink.parameter is not None
            width = integers[sink.parameter + 1]
        self.bins = BINS.get(sink.kind, 0) or width * WINDOWS[sink.kind]
        self.tables = 1 if self.window else TABLES
        size = 8 * self.window + 4 * self.tables * self.bins
        with _lock:
            spare = _spare.get(size)
            raw = spare.pop() if spare else None
        self.raw = np.zeros(size, np.uint8) if raw is None else raw
        self.small = self.raw[8 * self.window :].view(np.uint32).reshape(self.tables, self.bins)
        self.total: Any = None
        self.clean = True  # whether nothing was counted since the last flush

    @property
    def above(self) -> int:
        """Number of elements above a window."""
        return int(self.raw[:8].view(np.int64)[0])

    def flush(self) -> None:
        """Move the counts on; where most memory holds none, only what does is touched, so that the rest costs none."""
        if self.clean:
            return
        paged = self.small.reshape(self.tables, -1, _PAGE)
        # below 2³²: see _BATCH
        counted = np.add.reduce(paged, axis=0, dtype=np.uint32) if self.tables > 1 else paged[0]
        used = counted.max(axis=1).nonzero()[0]
        if 2 * len(used) > len(counted):
            moved = counted.reshape(-1)
            self.total = moved.astype(np.int64) if self.total is None else np.add(self.total, moved, out=self.total)
            self.small.fill(0)
        else:
            if self.total is None:
                self.total = np.zeros(self.bins, np.int64)
            self.total.reshape(-1, _PAGE)[used] += counted[used]
            paged[:, used] = 0
        self.clean = True

    def release(self) -> None:
        """Give the memory back, zero, for the next one of this size."""
        self.flush()
        if self.window:
            self.raw[:8] = 0
        with _lock:
            kept = _spare.setdefault(len(self.raw), [])
            if len(kept) < _KEPT:
                kept.append(self.raw)


class Totals:
    """What the sinks of a graph have added up so far, in one thread."""

    def __init__(self, bound: Bound) -> None:
        self.sinks = bound.sinks
        self._counted = 0
        counting = [sink.kind in BINS or sink.kind in WINDOWS for sink in self.sinks]
        self._places = [_Place(s, bound.integers) if c else None for s, c in zip(self.sinks, counting, strict=True)]
        self._sums = [ExactSum() for _ in self.sinks]
        self._counts = np.zeros(max(len(self.sinks), 1), np.int64)
        self._segments = np.empty((max(len(self.sinks), 1), 0), np.float64)

    def addresses(self, length: int) -> Any:
        """Where the kernel adds up the next `length` elements."""
        if self._counted + length > _BATCH:
            self._flush()
        self._counted += length
        segments = -(-length // SEGMENT)
        if self._segments.shape[1] < segments:
            self._segments = np.empty((len(self.sinks), segments), np.float64)
        found = (ctypes.c_void_p * max(len(self.sinks), 1))()
        for index, (sink, held) in enumerate(zip(self.sinks, self._places, strict=True)):
            place = self._segments[index] if sink.kind in SUMS else self._counts[index:]
            if held is not None:
                place, held.clean = held.raw, False
            found[index] = place.ctypes.data
        return found

    def settle(self) -> None:
        """Wait until all is counted: here nothing is on its way."""

    def add(self, length: int) -> None:
        """Take over the sums of the last call."""
        segments = -(-length // SEGMENT)
        for index, sink in enumerate(self.sinks):
            if sink.kind in SUMS:
                self._sums[index] += ExactSum.of(*self._segments[index, :segments].tolist())

    def _flush(self) -> None:
        for held in self._places:
            if held is not None:
                held.flush()
        self._counted = 0

    def result(self, index: int) -> Any:
        """The summary of one sink."""
        held = self._places[index]
        if held is not None:
            held.flush()
            bins = np.zeros(held.bins, np.int64) if held.total is None else held.total
            counts = Counts(torch.from_numpy(bins))
            return Window(held.above, counts) if self.sinks[index].kind.startswith("window") else counts
        return int(self._counts[index]) if self.sinks[index].kind == "count" else self._sums[index]

    def taken(self, index: int) -> Any:
        """The summary of one sink, whose memory others may use from then on; nothing may be added to it any more."""
        found, held = self.result(index), self._places[index]
        if held is not None:
            held.release()
            self._places[index] = None
        return found

    def release(self) -> None:
        """Let others use this memory; nothing may be added any more."""
        for held in self._places:
            if held is not None:
                held.release()

    def results(self) -> list[Any]:
        """The summaries of all sinks."""
        return [self.result(index) for index in range(len(self.sinks))]

    def fill(self, tree: Any) -> Any:
        """Put the summaries in the places where a traced survey left them open."""
        return fill(tree, lambda pending: self.result(pending.index))


class Tally:
    """Totals of many jobs, one set for each thread and each kernel."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], tuple[Bound, Totals]] = {}

    def of(self, bound: Bound) -> Totals:
        """Where this thread adds up what a kernel finds."""
        key = (threading.get_ident(), id(bound))
        if key not in self._held:
            self._held[key] = (bound, bound.totals())
        return self._held[key][1]

    def parts(self) -> list[tuple[Bound, Totals]]:
        """Everything added up so far, once no thread is at work."""
        return list(self._held.values())


def fill(tree: Any, value: Callable[[Pending], Any]) -> Any:
    """Replace every open place of a summary by its value."""
    if isinstance(tree, Pending):
        return value(tree)
    if isinstance(tree, tuple):
        return tuple(fill(item, value) for item in tree)
    if isinstance(tree, dict):
        return {key: fill(item, value) for key, item in tree.items()}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: fill(getattr(tree, f.name), value) for f in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **fields)
    return tree


class Bound:
    """A kernel with the numbers of one job, or of every job that is computed alike.

    Attributes:
        kernel: the code.
        tree: what a survey returned, with open places; None for a merge.
        sinks: its summaries.
        experts: the experts it draws random numbers for.
        general: whether it asks nothing about the tensor, so that it serves every job that is computed alike.
    """

    def __init__(self, kernel: Kernel, graph: Graph, tree: Any = None) -> None:
        self.kernel = kernel
        self.tree = tree
        self.sinks = tuple(graph.sinks)
        self.experts = tuple(graph.draws)
        self.general = False
        self.integers = tuple(graph.integers)
        self._graph = graph
        self._row = graph.row or 0
        self._numbers = (ctypes.c_double * max(len(graph.numbers), 1))(*graph.numbers)
        self._integers = (ctypes.c_int64 * max(len(graph.integers), 1))(*graph.integers)

    @property
    def joins(self) -> bool:
        """Whether it may run over several tensors as if they were one: it draws and sums up nothing."""
        plain = not self.experts and not self._row
        return self.general and plain and not any(sink.kind in SUMS for sink in self.sinks)

    def room(self, length: int) -> int:
        """Bytes of memory of its own that a block of so many elements needs."""
        return room(self._graph, length)

    def totals(self) -> Totals:
        """Return where its summaries are added up in one thread."""
        return self.kernel.totals(self)

    def launch(
        self,
        stream: Any,
        inputs: Sequence[int],
        length: int,
        out: int,
        offset: int,
        flags: int,
        keys: Any = None,
        totals: Totals | None = None,
    ) -> None:
        """Begin to run over one block on a device, on a stream.

        Addresses are the device's: `flags` that of an int32 to which the flags are added, the others as for `run`.
        """
        values: dict[str, Any] = {
            "in": inputs,
            "numbers": self._numbers,
            "integers": self.integers,
            "out": out,
            "flags": flags,
        }
        values |= {"n": length, "offset": offset, "keys": () if keys is None else keys.tolist()}
        values["sinks"] = () if totals is None else totals.addresses(length)
        self.kernel.function(stream, values)
        if totals is not None:
            totals.add(length)

    def run(
        self,
        inputs: Sequence[int],
        length: int,
        out: int | None,
        offset: int,
        keys: Any = None,
        totals: Totals | None = None,
        space: int | None = None,
    ) -> int:
        """Run over one block; return the flags.

        Args:
            inputs: addresses of the inputs' elements.
            length: number of elements.
            out: address of the result's elements.
            offset: flat index of the first element in its tensor.
            keys: of the random generator.
            totals: where a survey adds up.
            space: address of memory of its own, as much as `room` says.
        """
        flags = self.kernel.function(
            (ctypes.c_void_p * len(inputs))(*inputs),
            out,
            self._numbers,
            self._integers,
            None if keys is None else keys.ctypes.data,
            length,
            offset,
            None if totals is None else totals.addresses(length),
            self._row,
            space,
        )
        if totals is not None:
            totals.add(length)
        return int(flags)
