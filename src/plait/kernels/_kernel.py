"""A compiled graph at work: addresses in, flags out; what surveys add up."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from plait.kernels._emit import BINS
from plait.kernels._graph import Graph, Sink
from plait.kernels._trace import Pending
from plait.tensors.selection import Counts
from plait.tensors.sums import SEGMENT, ExactSum

__all__ = ["Bound", "Kernel", "Totals"]

_BATCH = 1 << 30  # elements after which 32-bit counts are moved on


class Kernel:
    """One compiled structure.

    Attributes:
        inputs: dtype of every input as the kernel reads it.
        output: dtype it writes; None for a survey.
        proven: whether its result has been compared with torch's in this process; None: not yet.
        fresh: whether it was compiled in this process.
    """

    def __init__(
        self, function: Any, inputs: tuple[torch.dtype, ...], output: torch.dtype | None, fresh: bool = False
    ) -> None:
        self.function = function
        self.inputs = inputs
        self.output = output
        self.proven: bool | None = None
        self.fresh = fresh


class Totals:
    """What the sinks of a graph have added up so far, in one thread."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = tuple(sinks)
        self._counted = 0
        self._bins = [np.zeros(2 * BINS[s.kind], np.uint32) if s.kind in BINS else None for s in self.sinks]
        self._large = [np.zeros(BINS[s.kind], np.int64) if s.kind in BINS else None for s in self.sinks]
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
        for index, sink in enumerate(self.sinks):
            bins = self._bins[index]
            place = self._segments[index] if sink.kind in ("dot", "segment_sums") else self._counts[index:]
            found[index] = (bins if bins is not None else place).ctypes.data
        return found

    def add(self, length: int) -> None:
        """Take over the sums of the last call."""
        segments = -(-length // SEGMENT)
        for index, sink in enumerate(self.sinks):
            if sink.kind in ("dot", "segment_sums"):
                self._sums[index] += ExactSum.of(*self._segments[index, :segments].tolist())

    def _flush(self) -> None:
        for small, large in zip(self._bins, self._large, strict=True):
            if small is not None and large is not None:
                large += small[: large.size]
                large += small[large.size :]
                small.fill(0)
        self._counted = 0

    def result(self, index: int) -> Any:
        """The summary of one sink."""
        self._flush()
        bins = self._large[index]
        if bins is not None:
            return Counts(torch.from_numpy(bins.copy()))
        return int(self._counts[index]) if self.sinks[index].kind == "count" else self._sums[index]

    def fill(self, tree: Any) -> Any:
        """Put the summaries in the places where a traced survey left them open."""
        if isinstance(tree, Pending):
            return self.result(tree.index)
        if isinstance(tree, tuple):
            return tuple(self.fill(item) for item in tree)
        if isinstance(tree, dict):
            return {key: self.fill(item) for key, item in tree.items()}
        if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
            fields = {f.name: self.fill(getattr(tree, f.name)) for f in dataclasses.fields(tree)}
            return dataclasses.replace(tree, **fields)
        return tree


class Bound:
    """A kernel with the numbers of one job, or of every job that is computed alike.

    Attributes:
        kernel: the code.
        tree: what a survey returned, with open places; None for a merge.
        sinks: its summaries.
        experts: the experts it draws random numbers for.
    """

    def __init__(self, kernel: Kernel, graph: Graph, tree: Any = None) -> None:
        self.kernel = kernel
        self.tree = tree
        self.sinks = tuple(graph.sinks)
        self.experts = tuple(graph.draws)
        self._numbers = (ctypes.c_double * max(len(graph.numbers), 1))(*graph.numbers)
        self._integers = (ctypes.c_int64 * max(len(graph.integers), 1))(*graph.integers)

    def run(
        self,
        inputs: Sequence[int],
        length: int,
        out: int | None,
        offset: int,
        keys: Any = None,
        totals: Totals | None = None,
    ) -> int:
        """Run over one block; return the flags.

        Args:
            inputs: addresses of the inputs' elements.
            length: number of elements.
            out: address of the result's elements.
            offset: flat index of the first element in its tensor.
            keys: of the random generator.
            totals: where a survey adds up.
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
        )
        if totals is not None:
            totals.add(length)
        return int(flags)
