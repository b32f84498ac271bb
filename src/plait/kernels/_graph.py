"""A pointwise computation as data: nodes in order, numbers kept apart from the structure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["CONSTANT", "FULL", "NARROW", "ROW_NUMBERS", "Graph", "Node", "Sink", "Untraceable"]

#: operations on a whole row that give one number for it
ROW_NUMBERS = frozenset({"row_threshold", "row_min", "row_max", "row_sum"})
#: how many values a node has: one, one per row, one per element
CONSTANT, NARROW, FULL = 0, 1, 2


class Untraceable(Exception):
    """The function does something that is not element by element."""


@dataclass(frozen=True)
class Node:
    """One value per element.

    Attributes:
        op: what computes it, a key of the tables in `plait.kernels._c`, or an operation on rows.
        args: indices of the nodes it is computed from.
        dtype: float32, float64, bool, int32 or int64.
        literal: a number that belongs to the structure: an input's place, a parameter's place, bits of a shift.
    """

    op: str
    args: tuple[int, ...]
    dtype: torch.dtype
    literal: int | float | None = None


@dataclass(frozen=True)
class Sink:
    """What a survey adds up over the elements.

    Attributes:
        kind: name of the primitive in `plait.tensors`.
        args: indices of the nodes it looks at.
        parameter: place of its own number among the integers, or None.
    """

    kind: str
    args: tuple[int, ...]
    parameter: int | None = None


@dataclass
class Graph:
    """Nodes, the numbers they use, and what comes out.

    Two graphs with the same `structure` are computed by the same kernel, with other numbers.

    Attributes:
        nodes: in an order in which they can be computed.
        numbers: what the places of `number` nodes stand for.
        integers: likewise for ranks and bins.
        sinks: what a survey adds up.
        draws: experts whose random numbers are used.
        output: the node that is the result.
        row: length of the rows it is computed in; None where every element is by itself.
    """

    nodes: list[Node] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    integers: list[int] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)
    draws: list[str] = field(default_factory=list)
    output: int | None = None
    row: int | None = None
    _known: dict[Node, int] = field(default_factory=dict)

    def add(self, op: str, args: tuple[int, ...], dtype: torch.dtype, literal: int | float | None = None) -> int:
        """Return the index of a node, a new one or one that computes the same."""
        node = Node(op, args, dtype, literal)
        found = self._known.get(node)
        if found is None:
            found = self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return found

    def number(self, value: float, dtype: torch.dtype) -> int:
        """Add a number that may be another one when the kernel is used again."""
        self.numbers.append(float(value))
        return self.add("number", (), dtype, len(self.numbers) - 1)

    def sink(self, kind: str, args: tuple[int, ...], integer: int | None = None) -> int:
        """Add a summary; return its place."""
        place = None
        if integer is not None:
            self.integers.append(integer)
            place = len(self.integers) - 1
        self.sinks.append(Sink(kind, args, place))
        return len(self.sinks) - 1

    def kinds(self) -> list[int]:
        """CONSTANT, NARROW or FULL for every node."""
        found: list[int] = []
        for node in self.nodes:
            if node.op in ROW_NUMBERS:
                found.append(NARROW)
            elif node.op in ("input", "uniform", "row_places"):
                found.append(FULL)
            else:
                found.append(max((found[i] for i in node.args), default=CONSTANT))
        return found

    def live(self) -> list[bool]:
        """Which nodes something depends on."""
        needed = [False] * len(self.nodes)
        for index in [*(i for sink in self.sinks for i in sink.args), *([] if self.output is None else [self.output])]:
            needed[index] = True
        for index in range(len(self.nodes) - 1, -1, -1):
            if needed[index]:
                for arg in self.nodes[index].args:
                    needed[arg] = True
        return needed

    @property
    def structure(self) -> Any:
        """What the code depends on."""
        return (tuple(self.nodes), tuple(self.sinks), self.output, self.row is not None)
