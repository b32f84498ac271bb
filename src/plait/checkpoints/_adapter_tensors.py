"""Changes of a weight (deltas) that an adapter makes.

A change that is known by its factors is never held dense: each block of it is computed from rows of B and all of A
when it is read. It is computed in tiles of fixed rows, so that its bits do not depend on which block is asked for.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from plait.checkpoints._base import LazyTensor

__all__ = [
    "TILE",
    "DerivedTensor",
    "DifferenceTensor",
    "FactorStore",
    "LowRankTensor",
    "MemberTensor",
    "ScaledTensor",
    "ZeroTensor",
]

#: elements of a tile
TILE = 1 << 16
#: bytes of factors that one adapter keeps in memory
_KEPT = 32 << 20


class FactorStore:
    """The factors that were used last, of one adapter."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, owner: LowRankTensor) -> tuple[Tensor, Tensor]:
        """Return left and right factors, reading them where they are not at hand."""
        key = id(owner)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        found = owner.read_factors()
        with self._lock:
            self._held[key] = found
            while len(self._held) > 4 and sum(a.nbytes + b.nbytes for a, b in self._held.values()) > _KEPT:
                self._held.popitem(last=False)
        return found


class DerivedTensor(LazyTensor):
    """A tensor that is computed from others."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, source: str, kept: torch.dtype) -> None:
        super().__init__(name, shape, dtype, source)
        self.kept = kept

    @property
    def width(self) -> int:
        """Elements of a row."""
        return max(1, prod(self.shape[1:]))

    def prefetch(self, start: int, stop: int) -> None:
        """Tell the parts that have the same shape; factors are read whole."""
        for part in self.parts:
            if part.shape == self.shape:
                part.prefetch(start, stop)


class LowRankTensor(DerivedTensor):
    """scale · L R, or a stack of such products, reshaped to the weight it is a change of.

    Args:
        name: the weight's name.
        shape: the weight's shape.
        a: A as it is stored.
        b: B as it is stored.
        scale: factor of the product.
        swap: whether the change is (B A)ᵀ: of embeddings, and of weights that are stored as (in, out).
        stack: number of products side by side: the experts of a fused tensor.
        kept: dtype that a result on this tensor should have.
        store: where factors are kept for the next block.

    Attributes:
        module: the module as the adapter calls it.
        kind: how the adapter keeps its factors.
    """

    space: ClassVar[str] = "delta"

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        a: LazyTensor,
        b: LazyTensor,
        scale: float,
        *,
        swap: bool = False,
        stack: int = 1,
        kept: torch.dtype = torch.float32,
        store: FactorStore | None = None,
    ) -> None:
        wide = torch.float64 in (a.dtype, b.dtype)
        super().__init__(name, shape, torch.float64 if wide else torch.float32, b.source, kept)
        self.a, self.b = a, b
        self.scale, self.swap, self.stack = scale, swap, stack
        self.rank = a.shape[0] // stack
        self.module = ""
        self.kind: Literal["linear", "transposed", "embedding", "convolution"] = (
            "convolution" if len(shape) > 2 else "transposed" if swap else "linear"
        )
        self._store = store or FactorStore()
        self.nbytes = a.nbytes + b.nbytes  # what is read for it

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """A and B as they lie on disk."""
        return (self.a, self.b)

    def memory(self, block: int) -> int:
        """Both factors in float32, and a tile."""
        del block
        return 2 * (self.a.numel + self.b.numel) * self.dtype.itemsize + 2 * (TILE + self.width) * self.dtype.itemsize

    def read_factors(self) -> tuple[Tensor, Tensor]:
        """Read L (stack, m, r) and R (stack, r, n), the scale folded in."""
        a, b = self.a.load().to(self.dtype), self.b.load().to(self.dtype)
        if self.stack == 1:
            rank = a.shape[0]
            a, b = a.reshape(1, rank, -1), b.reshape(-1, rank)[None]
        else:  # PEFT lays the experts' ranks one after another in A, and side by side in B
            a = a.reshape(self.stack, -1, a.shape[-1])
            b = b.reshape(b.shape[0], -1, self.stack).permute(2, 0, 1)
        root = abs(self.scale) ** 0.5  # on both sides, so that neither factor is the larger by the scale alone
        a, b = a * root, b * math.copysign(root, self.scale)
        left, right = (a.mT, b.mT) if self.swap else (b, a)
        return left.contiguous(), right.contiguous()

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """The change as two factors; None for a stack."""
        if self.stack != 1:
            return None
        left, right = self._store.get(self)
        return left[0], right[0]

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Compute the range, tile by tile."""
        del scratch
        end = self.numel if stop is None else stop
        left, right = self._store.get(self)
        result = torch.empty(end - start, dtype=self.dtype)
        rows, width = left.shape[1], right.shape[2]
        tile = max(1, TILE // width)
        position = start
        while position < end:
            member, row = divmod(position // width, rows)
            first = row // tile * tile
            last = min(first + tile, rows)
            values = (left[member, first:last].clone() @ right[member]).view(-1)
            begin = position - (member * rows + first) * width
            count = min(values.numel() - begin, end - position)
            result[position - start : position - start + count] = values[begin : begin + count]
            position += count
        return result


class MemberTensor(LowRankTensor):
    """The change of one expert's weight by a fused parameter's: some rows of one product of a stack."""

    def __init__(self, fused: LowRankTensor, name: str, member: int, rows: range, kept: torch.dtype) -> None:
        width = fused.shape[2]
        super().__init__(name, (len(rows), width), fused.a, fused.b, fused.scale, kept=kept, store=fused._store)
        self._fused, self._member, self._rows = fused, member, rows
        self.rank = fused.rank
        self.nbytes = (fused.a.nbytes + fused.b.nbytes) // fused.stack

    def read_factors(self) -> tuple[Tensor, Tensor]:
        """Cut the expert's own out of the stack."""
        left, right = self._store.get(self._fused)
        own = slice(self._member, self._member + 1)
        return left[own, self._rows.start : self._rows.stop].contiguous(), right[own].contiguous()


class ZeroTensor(DerivedTensor):
    """No change of a weight."""

    space: ClassVar[str] = "delta"

    def __init__(self, name: str, shape: tuple[int, ...], source: str, kept: torch.dtype = torch.float32) -> None:
        super().__init__(name, shape, torch.float32, source, kept)
        self.nbytes = 0

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """It lies nowhere."""
        return ()

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Two factors of rank 0."""
        rows = self.shape[0] if self.shape else 1
        return torch.zeros(rows, 0), torch.zeros(0, self.numel // max(rows, 1))

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Return zeros."""
        del scratch
        return torch.zeros((self.numel if stop is None else stop) - start)


class ScaledTensor(DerivedTensor):
    """scale · a stored vector: the change of a bias."""

    space: ClassVar[str] = "delta"

    def __init__(self, name: str, tensor: LazyTensor, scale: float, kept: torch.dtype) -> None:
        super().__init__(name, tensor.shape, torch.float32, tensor.source, kept)
        self.tensor, self.scale = tensor, scale

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """The vector."""
        return (self.tensor,)

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Multiply."""
        del scratch
        return self.tensor.read(start, stop).float() * self.scale


class DifferenceTensor(DerivedTensor):
    """What a weight differs from another by, in float32."""

    space: ClassVar[str] = "delta"

    def __init__(self, weight: LazyTensor, base: LazyTensor) -> None:
        dtype = torch.promote_types(torch.promote_types(weight.dtype, base.dtype), torch.float32)
        super().__init__(weight.name, weight.shape, dtype, weight.source, base.kept)
        self.weight, self.base = weight, base
        self.nbytes = weight.nbytes + base.nbytes

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """What lies on disk of both."""
        return (*self.weight.parts, *self.base.parts)

    def memory(self, block: int) -> int:
        """Both in their own dtypes."""
        own = block * (self.weight.dtype.itemsize + self.base.dtype.itemsize + 4)
        return own + self.weight.memory(block) + self.base.memory(block)

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Subtract."""
        values = self.weight.read(start, stop).to(self.dtype, copy=True)
        return values.sub_(self.base.read(start, stop, scratch))
