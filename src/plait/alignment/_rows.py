"""A table with one row per token, seen with the rows of another vocabulary."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.checkpoints import LazyTensor

__all__ = ["PADDING", "ZERO", "AlignedTable", "Mix"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Mix:
    """A row that no table holds: a weighted sum of rows, (table, row, weight) each; empty for zeros.

    Attributes:
        rows: what is added up.
        mean: of the table's own tokens, times this, is added.
        padding: it is the mean of the new rows that are tokens.
    """

    rows: tuple[tuple[int, int, float], ...] = ()
    mean: float = 0.0
    padding: bool = False


ZERO = Mix()
PADDING = Mix(padding=True)


class AlignedTable(LazyTensor):
    """Rows of several tables in a new order; those of one's own mostly.

    Args:
        own: index of the model's own table among the tables.
        tables: the same tensor of every model.
        rows: for each new row either (table, row) or a `Mix`.
        tokens: rows of the own table that are tokens: what a mean is taken over.
    """

    def __init__(
        self,
        name: str,
        own: int,
        tables: Mapping[int, LazyTensor],
        rows: Sequence[tuple[int, int] | Mix],
        tokens: Sequence[int],
    ) -> None:
        first = tables[own]
        dtype = first.dtype
        for table in tables.values():
            dtype = torch.promote_types(dtype, table.dtype)
        super().__init__(name, (len(rows), *first.shape[1:]), dtype, first.source)
        self._own = own
        self._tables = dict(tables)
        self._rows = rows
        self._tokens = sorted(tokens)
        self._width = first.numel // max(first.shape[0], 1)
        self._runs = _runs(rows)
        self._starts = [run[0] for run in self._runs]
        self._mixed: dict[Mix, Tensor] = {}
        self._lock = threading.RLock()  # a row of padding is made of rows that may be mixed themselves
        used = {own} | {row[0] for row in rows if not isinstance(row, Mix)}
        used |= {table for row in rows if isinstance(row, Mix) for table, _, _ in row.rows}
        self._parts = tuple(dict.fromkeys(part for table in sorted(used) for part in self._tables[table].parts))

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """The tables that rows are taken from."""
        return self._parts

    def memory(self, block: int) -> int:
        """Bytes in flight while it is read: the block's rows, and what its tables hold."""
        return block * self.dtype.itemsize + max(table.memory(block) for table in self._tables.values())

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Gather the rows that the range lies in."""
        del scratch
        end = self.numel if stop is None else stop
        if end <= start:
            return torch.empty(0, dtype=self.dtype)
        width = self._width
        first, last = start // width, -(-end // width)
        out = torch.empty((last - first) * width, dtype=self.dtype)
        place = bisect.bisect_right(self._starts, first) - 1
        while place < len(self._runs) and self._runs[place][0] < last:
            begin, count, what, row = self._runs[place]
            low, high = max(begin, first), min(begin + count, last)
            into = out[(low - first) * width : (high - first) * width]
            if isinstance(what, Mix):
                into.view(-1, width)[:] = self._mix(what)
            else:
                at = (row + low - begin) * width
                into[:] = self._tables[what].read(at, at + into.numel()).to(self.dtype)
            place += 1
        return out[start - first * width : end - first * width]

    def _mix(self, mix: Mix) -> Tensor:
        with self._lock:
            if mix not in self._mixed:
                total = torch.zeros(self._width, dtype=torch.float64)
                for table, row, weight in mix.rows:
                    total += weight * self._tables[table].read(row * self._width, (row + 1) * self._width).double()
                if mix.mean:
                    total += mix.mean * self._mean(self._tables[self._own], self._tokens)
                if mix.padding:
                    total += self._mean(self, [i for i, row in enumerate(self._rows) if row != PADDING])
                self._mixed[mix] = total.to(self.dtype)
            return self._mixed[mix]

    def _mean(self, table: LazyTensor, tokens: Sequence[int]) -> Tensor:
        """The mean of some rows of a table, given in ascending order."""
        width = self._width
        total = torch.zeros(width, dtype=torch.float64)
        for _, count, _, row in _runs([(0, token) for token in tokens]):
            step = max(1, _CHUNK // width)
            for low in range(row, row + count, step):
                high = min(low + step, row + count)
                total += table.read(low * width, high * width).double().view(-1, width).sum(0)
        return total / max(len(tokens), 1)


def _runs(rows: Sequence[tuple[int, int] | Mix]) -> list[tuple[int, int, int | Mix, int]]:
    """Neighbours that are neighbours in their table too: (first new row, how many, table or mix, first old row)."""
    runs: list[tuple[int, int, int | Mix, int]] = []
    for place, row in enumerate(rows):
        if runs:
            begin, count, what, first = runs[-1]
            same = row == what if isinstance(row, Mix) else row == (what, first + count)
            if same:
                runs[-1] = (begin, count + 1, what, first)
                continue
        runs.append((place, 1, row, 0) if isinstance(row, Mix) else (place, 1, row[0], row[1]))
    return runs
