"""Sequences of tensors that are made when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from torch import Tensor

__all__ = ["Stream"]


class Stream(Sequence[Tensor]):
    """Tensors that are made anew at every look and not kept: the taker owns what it gets and may overwrite it.

    Going through the experts with `for delta in group.deltas` holds one of them at a time; `list(...)` holds all.
    """

    def __init__(self, count: int, make: Callable[[int], Tensor]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Stream: ...
    def __getitem__(self, index: int | slice) -> Tensor | Stream:
        chosen = range(self._count)[index]
        if isinstance(chosen, range):
            return Stream(len(chosen), lambda i: self._make(chosen[i]))
        return self._make(chosen)

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(self._count):
            yield self._make(i)  # not a local name: it would keep this one alive while the next is made

    def map(self, change: Callable[[Tensor], Tensor]) -> Stream:
        """Apply a function, which may overwrite its argument, to every tensor as it is made."""
        return Stream(self._count, lambda i: change(self._make(i)))
