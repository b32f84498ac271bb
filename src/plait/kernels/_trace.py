"""Follow a method's own function once with stand-ins for its tensors, and write down what it does per element.

A stand-in is a tensor without values. Everything that torch is asked to do with it arrives in `__torch_function__`;
what is pointwise becomes a node of the graph, anything else ends the attempt with `Untraceable`.
Python's own control flow may depend on parameters, weights and facts, never on values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plait.kernels._graph import ROW_NUMBERS, Graph, Untraceable
from plait.tensors.summaries import Deferred

__all__ = ["Pending", "Traced"]

_FACTS = frozenset({"__get__", "size", "numel", "dim", "__len__", "is_floating_point", "stride", "is_contiguous"})
_SAME = frozenset(
    {"view", "reshape", "flatten", "detach", "clone", "contiguous", "expand", "view_as", "reshape_as", "expand_as"}
)
_DUNDER = {name: name for name in ("add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge", "neg", "abs")}
_DUNDER |= {"truediv": "div", "div": "div", "and": "bitwise_and", "or": "bitwise_or", "invert": "bitwise_not"}
_DUNDER |= {"pow": "pow"}
_SPELLINGS = {
    "divide": "div",
    "true_divide": "div",
    "subtract": "sub",
    "multiply": "mul",
    "negative": "neg",
    "absolute": "abs",
    "clip": "clamp",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "eq": "eq",
}
_UNARY = {"abs": "abs", "neg": "neg", "reciprocal": "reciprocal", "sign": "sign", "square": "square"}
_BINARY = {"mul": "mul", "maximum": "maximum", "minimum": "minimum"}
_COMPARE = {"eq", "ne", "lt", "le", "gt", "ge"}
_LOGICAL = {"logical_and": "and", "bitwise_and": "and", "logical_or": "or", "bitwise_or": "or"}
_FLOAT, _WIDE, _BOOL, _INT = torch.float32, torch.float64, torch.bool, torch.int32


@dataclass(frozen=True)
class Pending(Deferred):
    """A summary that the kernel will fill in: the place of its sink."""

    index: int


@functools.cache
def _shell(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class Traced(Tensor):
    """A block of elements, or of rows, of which only the way it is computed is known."""

    graph: Graph
    node: int
    form: tuple[int, ...]  # the shape, without a detour through torch

    @staticmethod
    def of(graph: Graph, node: int, *shape: int) -> Traced:
        """Return a stand-in for one node."""
        made = Tensor._make_subclass(Traced, _shell(shape, graph.nodes[node].dtype))
        made.graph, made.node, made.form = graph, node, shape
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Traced({self.node})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Turn one call into a node."""
        name: str = func.__name__
        if name in _FACTS:  # shape, dtype and the like are known
            with torch._C.DisableTorchFunctionSubclass():
                found = func(*args, **(kwargs or {}))
            if isinstance(found, Tensor):
                raise Untraceable("another view of a tensor")
            return found
        return _Call(name, args, dict(kwargs or {})).result()

    def summarised(self, kind: str, *others: Any) -> Pending:
        """Stand in for a summary of this tensor (`plait.tensors.summaries.deferrable`)."""
        nodes, integer = [self.node], None
        for other in others:
            if isinstance(other, Traced):
                nodes.append(other.node)
            elif isinstance(other, int) and integer is None:
                integer = other
            else:
                raise Untraceable(f"{kind} of {type(other).__name__}")
        return Pending(self.graph.sink(kind, tuple(nodes), integer))

    def in_rows(self, kind: str, *others: int) -> Traced:
        """Stand in for what is found in whole rows (`plait.tensors.summaries.rowwise`)."""
        if self.graph.row is None or self.ndim != 2 or self.dtype != torch.float32:
            raise Untraceable(f"{kind} of what are no rows")
        place = None
        for other in others:
            self.graph.integers.append(int(other))
            place = len(self.graph.integers) - 1
        node = self.graph.add(kind, (self.node,), torch.float32, place)
        return Traced.of(self.graph, node, self.shape[0], 1 if kind in ROW_NUMBERS else self.shape[1])


class _Call:
    """One operation on stand-ins."""

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.out: Traced | None = kwargs.pop("out", None)
        if name.startswith("__") and name.endswith("__"):
            name = name[2:-2]
            if name[0] == "i" and name[1:] in _DUNDER:
                name, self.out = name[1:], args[0]
            elif name[0] == "r" and name[1:] in _DUNDER:
                name, args = name[1:], args[::-1]
            name = _DUNDER.get(name, name)
        elif name.endswith("_"):
            name, self.out = name[:-1], args[0]
        self.name = _SPELLINGS.get(name, name)
        self.args, self.kwargs = args, kwargs
        like = next((a for a in (*args, *kwargs.values()) if isinstance(a, Traced)), None)
        if like is None:
            raise Untraceable(self.name)
        self.like: Traced = like
        self.graph = like.graph

    def result(self) -> Any:
        """Return the stand-in for what the call computes."""
        if self.name == "aminmax":
            self._along_rows()
            return tuple(self.like.in_rows(kind) for kind in ("row_min", "row_max"))
        if self.name == "sum":
            self._along_rows()
            if self.graph.nodes[self.like.node].op != "sign":
                raise Untraceable("a sum whose rounding depends on its order")
            return self.like.in_rows("row_sum")
        if self.name in _SAME:
            self._check_shape()
            if self.name == "view" and isinstance(self.args[1], torch.dtype):
                return self._made(self._bitcast(self.args[1]))
            return self._made(self.like.node) if self.name == "clone" else self.like
        node = self._node()
        if self.out is None:
            return self._made(node)
        if self.graph.nodes[node].dtype != self.graph.nodes[self.out.node].dtype:
            raise Untraceable(f"{self.name} into another dtype")
        self.out.node = node
        return self.out

    def _made(self, node: int) -> Traced:
        # of a row's number and of its elements, the elements
        form = max(a.form for a in (*self.args, *self.kwargs.values()) if isinstance(a, Traced))
        return Traced.of(self.graph, node, *form)

    def _along_rows(self) -> None:
        if self.kwargs != {"dim": -1, "keepdim": True} or len(self.args) != 1 or self.out is not None:
            raise Untraceable(f"{self.name} over more or less than a row")

    def _check_shape(self) -> None:
        shape = self.like.form
        if self.name in ("view_as", "reshape_as", "expand_as"):
            sizes = tuple(self.args[1].shape)
        else:
            given = [a for b in self.args[1:] for a in (b if isinstance(b, (list, tuple)) else [b])]
            sizes = tuple(a for a in given if isinstance(a, int) and not isinstance(a, bool))
            if not sizes and self.name != "flatten":
                return
        if self.name == "flatten" and len(shape) == 1:
            return
        if len(sizes) != len(shape) or any(a not in (-1, b) for a, b in zip(sizes, shape, strict=True)):
            raise Untraceable(f"{self.name} to {sizes}")

    def _dtype(self, node: int) -> torch.dtype:
        return self.graph.nodes[node].dtype

    def _operand(self, value: Any, dtype: torch.dtype) -> int:
        """The node of an argument, as it takes part in arithmetic of a dtype."""
        if isinstance(value, Traced):
            return self._cast(value.node, dtype)
        if isinstance(value, Tensor):
            if value.ndim:
                raise Untraceable("a tensor that is no input")
            value = value.item()
        if not isinstance(value, (bool, int, float)):
            raise Untraceable(f"an argument of type {type(value).__name__}")
        if dtype in (_FLOAT, _WIDE):
            return self.graph.number(float(value), dtype)
        return self.graph.add("literal", (), dtype, int(value))

    def _cast(self, node: int, dtype: torch.dtype) -> int:
        if self._dtype(node) == dtype:
            return node
        if dtype not in (_FLOAT, _WIDE, _INT, torch.int64, _BOOL):
            raise Untraceable(f"a value of {dtype}")
        return self.graph.add("cast", (node,), dtype)

    def _bitcast(self, dtype: torch.dtype) -> int:
        if self._dtype(self.like.node) != _FLOAT or dtype != _INT:
            raise Untraceable(f"bits as {dtype}")
        return self.graph.add("bits", (self.like.node,), _INT)

    def _common(self, *values: Any) -> torch.dtype:
        """The dtype arithmetic of these values is done in."""
        dtypes = {self._dtype(v.node) for v in values if isinstance(v, Traced)}
        if _WIDE in dtypes:
            return _WIDE
        real = any(isinstance(v, float) or (isinstance(v, Tensor) and v.is_floating_point()) for v in values)
        if _FLOAT in dtypes or real:
            return _FLOAT
        numbers = dtypes - {_BOOL}
        if len(numbers) == 1:
            return numbers.pop()
        raise Untraceable(f"{self.name} of {dtypes}")

    def _node(self) -> int:
        rule: Callable[[], int] | None = getattr(self, f"_on_{self.name}", None)
        if rule is not None:
            return rule()
        if self.name in _UNARY and len(self.args) == 1:
            return self.graph.add(_UNARY[self.name], (self._operand(self.args[0], _FLOAT),), _FLOAT)
        if self.name in _BINARY and len(self.args) == 2 and not self.kwargs:
            dtype = self._common(*self.args)
            if dtype != _FLOAT and (dtype, self.name) != (_WIDE, "mul"):
                raise Untraceable(f"{self.name} of {dtype}")
            return self.graph.add(_BINARY[self.name], tuple(self._operand(a, dtype) for a in self.args), dtype)
        if self.name in _COMPARE:
            dtype = self._common(*self.args)
            return self.graph.add(self.name, tuple(self._operand(a, dtype) for a in self.args), _BOOL)
        if self.name in _LOGICAL:
            if any(not isinstance(a, Traced) or self._dtype(a.node) != _BOOL for a in self.args):
                raise Untraceable(f"{self.name} of numbers")
            return self.graph.add(_LOGICAL[self.name], tuple(a.node for a in self.args), _BOOL)
        raise Untraceable(self.name)

    # --- operations with rules of their own ---------------------------------------------------------------------

    def _sum(self, sign: int, first: Any, second: Any) -> int:
        alpha = self.kwargs.get("alpha", self.args[2] if len(self.args) > 2 else 1)
        dtype = self._common(first, second)
        if dtype == _INT and alpha == 1:
            op = "add" if sign > 0 else "sub"
            return self.graph.add(op, (self._operand(first, dtype), self._operand(second, dtype)), dtype)
        if dtype not in (_FLOAT, _WIDE):
            raise Untraceable(f"{self.name} of {dtype}")
        a, b = self._operand(first, dtype), self._operand(second, dtype)
        if alpha == 1:
            return self.graph.add("add" if sign > 0 else "sub", (a, b), dtype)
        # torch multiplies and adds in one rounding here
        return self.graph.add("fma", (b, self.graph.number(sign * alpha, dtype), a), dtype)

    def _on_add(self) -> int:
        return self._sum(1, self.args[0], self.args[1])

    def _on_sub(self) -> int:
        return self._sum(-1, self.args[0], self.args[1])

    def _on_rsub(self) -> int:
        return self._sum(-1, self.args[1], self.args[0])

    def _on_pow(self) -> int:
        if self.args[1] != 2 or not isinstance(self.args[0], Traced):
            raise Untraceable("pow")
        return self.graph.add("square", (self._operand(self.args[0], _FLOAT),), _FLOAT)

    def _on_addcmul(self) -> int:
        if self.kwargs.get("value", 1) != 1:
            raise Untraceable("addcmul with a value")
        a, b, c = (self._operand(v, _FLOAT) for v in self.args)
        return self.graph.add("fma", (b, c, a), _FLOAT)

    def _on_div(self) -> int:
        first, second = self.args
        if self.kwargs or self._common(first, second) != _FLOAT:
            raise Untraceable("div of integers")
        if isinstance(first, (int, float)):  # torch multiplies by the reciprocal
            node = self.graph.add("reciprocal", (self._operand(second, _FLOAT),), _FLOAT)
            return self.graph.add("mul", (node, self._operand(first, _FLOAT)), _FLOAT)
        return self.graph.add("div", (self._operand(first, _FLOAT), self._operand(second, _FLOAT)), _FLOAT)

    def _on_float(self) -> int:
        return self._cast(self.like.node, _FLOAT)

    def _on_where(self) -> int:
        condition, yes, no = self.args
        if not isinstance(condition, Traced) or self._dtype(condition.node) != _BOOL:
            raise Untraceable("where")
        dtype = self._common(yes, no)
        return self.graph.add("where", (condition.node, self._operand(yes, dtype), self._operand(no, dtype)), dtype)

    def _on_clamp(self) -> int:
        low, high = (*self.args[1:], None, None)[:2]
        low, high = self.kwargs.get("min", low), self.kwargs.get("max", high)
        node = self._operand(self.args[0], _FLOAT)
        if low is not None:
            node = self.graph.add("clamp_min", (node, self._operand(low, _FLOAT)), _FLOAT)
        if high is not None:
            node = self.graph.add("clamp_max", (node, self._operand(high, _FLOAT)), _FLOAT)
        return node

    def _on_clamp_min(self) -> int:
        return self.graph.add("clamp_min", tuple(self._operand(a, _FLOAT) for a in self.args), _FLOAT)

    def _on_clamp_max(self) -> int:
        return self.graph.add("clamp_max", tuple(self._operand(a, _FLOAT) for a in self.args), _FLOAT)

    def _on_logical_not(self) -> int:
        return self.graph.add("not", (self._operand(self.args[0], _BOOL),), _BOOL)

    _on_bitwise_not = _on_logical_not

    def _on__to_copy(self) -> int:
        wanted = self.kwargs.get("dtype") or self._dtype(self.like.node)
        return self._cast(self.like.node, wanted)

    def _on_to(self) -> int:
        wanted = next((a for a in self.args[1:] if isinstance(a, torch.dtype)), None)
        return self._cast(self.like.node, wanted or self._dtype(self.like.node))

    def _on_copy(self) -> int:
        return self._operand(self.args[1], self._dtype(self.args[0].node))

    def _filled(self, value: Any) -> int:
        dtype = self.kwargs.get("dtype") or self._dtype(self.like.node)
        if dtype in (_FLOAT, _WIDE):
            return self.graph.add("literal", (), dtype, float(value))
        return self._operand(value, dtype)

    def _on_zeros_like(self) -> int:
        return self._filled(0)

    def _on_ones_like(self) -> int:
        return self._filled(1)

    def _on_full_like(self) -> int:
        return self._filled(self.args[1])
