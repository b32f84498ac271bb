"""Give a model another model's tokenizer without training: known tokens keep their rows and write the new ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from plait.alignment._pieces import pieces_of
from plait.alignment._tokenizer import Tokenizer
from plait.alignment._vocabulary import with_tables
from plait.alignment._words import meanings
from plait.architectures import roles_of, token_tables
from plait.checkpoints import Checkpoint, LazyTensor
from plait.errors import IncompatibleModelsError, RecipeError
from plait.tensors.pursuit import between_neighbours, matching_pursuit

__all__ = ["WAYS", "TransplantedTable", "Way", "transplant"]

Way: TypeAlias = Literal["omp", "nearest", "subword", "mean", "zero"]
WAYS: tuple[Way, ...] = ("omp", "nearest", "subword", "mean", "zero")

#: new tokens that are computed at once; fixed, so that the result does not depend on what is asked for
_BATCH = 256


class TransplantedTable(LazyTensor):
    """A model's table with the rows of a donor's tokens.

    A token that both know has the model's row. Another is approximated in the donor's table by tokens that both know,
    and the same sum of the model's rows is its row: t ≈ Σ cᵢ·donor[sᵢ] gives Σ cᵢ·model[sᵢ]. By `subword`, its row is
    the mean of those of the pieces that the model's own tokenizer makes of its text; the donor's table is not read.

    Args:
        table: the model's.
        donor: the donor's.
        known: row of the donor → row of the model, of tokens that both know.
        rows: rows of the result.
        way: how new tokens are approximated.
        k: by how many known tokens.
        tokens: rows of the donor that are tokens.
        pieces: row of the donor → the model's tokens for its text, for `subword`.
    """

    def __init__(
        self,
        table: LazyTensor,
        donor: LazyTensor,
        known: Mapping[int, int],
        rows: int,
        way: Way,
        k: int,
        tokens: frozenset[int],
        pieces: Callable[[int], list[int]] | None = None,
    ) -> None:
        super().__init__(table.name, (rows, table.shape[1]), table.dtype, table.source)
        self._table, self._donor = table, donor
        self._known = dict(sorted(known.items()))
        self._way, self._k = way, k
        self._new = [row for row in range(rows) if row not in self._known]
        self._place = {row: i for i, row in enumerate(self._new)}
        self._tokens = tokens
        self._pieces = pieces
        self._lock = threading.Lock()
        self._pair: tuple[Tensor, Tensor] | None = None
        self._batches: dict[int, Tensor] = {}

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """Both tables."""
        return tuple(dict.fromkeys((*self._table.parts, *self._donor.parts)))

    def memory(self, block: int) -> int:
        """The known rows of both tables in float32, and one batch."""
        width = self._table.shape[1] + self._donor.shape[1]
        return block * 4 + 4 * width * len(self._known) + 4 * _BATCH * (len(self._known) + 2 * self._k * width)

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Gather known rows and compute new ones."""
        del scratch
        end, width = self.numel if stop is None else stop, self.shape[1]
        if end <= start:
            return torch.empty(0, dtype=self.dtype)
        first, last = start // width, -(-end // width)
        out = torch.empty(last - first, width, dtype=self.dtype)
        for row in range(first, last):
            if row in self._known:
                at = self._known[row] * width
                out[row - first] = self._table.read(at, at + width)
            else:
                out[row - first] = self._fresh(row)
        return out.view(-1)[start - first * width : end - first * width]

    def _fresh(self, row: int) -> Tensor:
        index = self._place[row] // _BATCH
        with self._lock:
            if index not in self._batches:
                while len(self._batches) > 1:
                    self._batches.pop(next(iter(self._batches)))
                self._batches[index] = self._compute(index)
            return self._batches[index][self._place[row] % _BATCH]

    def _rows_of(self, table: LazyTensor, rows: list[int]) -> Tensor:
        width = table.shape[1]
        return torch.stack([table.read(r * width, (r + 1) * width).float() for r in rows])

    def _compute(self, index: int) -> Tensor:
        rows = self._new[index * _BATCH : (index + 1) * _BATCH]
        out = torch.zeros(len(rows), self.shape[1])
        if self._way == "zero":
            return out.to(self.dtype)
        if self._pieces is not None:
            return self._of_pieces(rows, self._pieces, out).to(self.dtype)
        if self._pair is None:
            self._pair = (
                self._rows_of(self._donor, list(self._known)),
                self._rows_of(self._table, list(self._known.values())),
            )
        atoms, ours = self._pair
        out[:] = ours.mean(0)
        real = [i for i, row in enumerate(rows) if row in self._tokens and row < self._donor.shape[0]]
        if self._way != "mean" and real:
            targets = self._rows_of(self._donor, [rows[i] for i in real])
            solve = matching_pursuit if self._way == "omp" else between_neighbours
            picks, shares = solve(targets, atoms, min(self._k, len(atoms)))
            out[real] = torch.einsum("bk,bkd->bd", shares, ours[picks])
        return out.to(self.dtype)

    def _of_pieces(self, rows: list[int], pieces: Callable[[int], list[int]], out: Tensor) -> Tensor:
        """Means of the rows of each token's pieces; of all known tokens for what has none."""
        rest: list[int] = []
        for i, row in enumerate(rows):
            found = [n for n in pieces(row) if n < self._table.shape[0]] if row in self._tokens else []
            if found:
                out[i] = self._rows_of(self._table, found).mean(0)
            else:
                rest.append(i)
        if rest:
            out[rest] = self._rows_of(self._table, list(self._known.values())).mean(0)
        return out


def transplant(
    checkpoint: Checkpoint,
    own: Tokenizer,
    donor: Checkpoint,
    theirs: Tokenizer,
    rows: int,
    way: Way = "omp",
    k: int = 64,
) -> tuple[Checkpoint, int]:
    """See a model with the tokens of another one; return it and how many tokens both know.

    Raises:
        RecipeError: if the two share no token.
        IncompatibleModelsError: for models without tables of tokens, or with tables that are no matrices.
    """
    names = token_tables({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    others = _by_kind(donor)
    if not names or not others:
        which = donor if names else checkpoint
        raise IncompatibleModelsError(f"{which.label} has no table of token embeddings that plait knows by its name.")
    roles = roles_of(checkpoint.tensors)
    tables: dict[str, LazyTensor] = {}
    pieces = pieces_of(own, theirs) if way == "subword" else None
    shared = 0
    for name in names:
        table = checkpoint.tensors[name]
        source = others.get(roles[name].kind, others["embedding"])  # a tied donor has one table for both
        if len(table.shape) != 2:
            raise IncompatibleModelsError(
                f"{name} of {checkpoint.label} has one number per token, which a transplant cannot give to new tokens."
            )
        mine, other = meanings(own, table.shape[0]), meanings(theirs, source.shape[0])
        known = {number: mine[meaning] for meaning, number in other.items() if meaning in mine and number < rows}
        if not known:
            raise RecipeError(
                f"tokenizer: {checkpoint.label} and {donor.label} have no token in common; nothing can be transplanted."
            )
        shared = len(known)
        tables[name] = TransplantedTable(table, source, known, rows, way, k, frozenset(theirs.ids.values()), pieces)
    return with_tables(checkpoint, tables, rows), shared


def _by_kind(donor: Checkpoint) -> dict[str, LazyTensor]:
    names = token_tables({name: tensor.shape for name, tensor in donor.tensors.items()})
    roles = roles_of(donor.tensors)
    found: dict[str, LazyTensor] = {}
    for name in names:
        if len(donor.tensors[name].shape) == 2:
            found.setdefault(roles[name].kind, donor.tensors[name])
    return found if "embedding" in found else {}
