"""Matrix products in float64 of float32 matrices, panel by panel, so that no float64 copy of a large one exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["add_gram", "add_product", "gram_of_rows", "mirror", "panels", "times"]

#: elements of a panel of long rows that is held in float64
_PANEL = 1 << 21
#: rows of a block of a symmetric product; blocks above the diagonal are not computed
_BLOCK = 256


def panels(long: int, rows: int) -> Iterator[slice]:
    """Cut `long` columns of `rows` entries into panels of bounded size."""
    width = max(64, _PANEL // max(rows, 1) // 64 * 64)
    for start in range(0, long, width):
        yield slice(start, min(start + width, long))


def add_gram(gram: Float[Tensor, "r r"], rows: Float[Tensor, "r l"], scale: float = 1.0) -> None:
    """Add scale · A Aᵀ to the lower triangle, in the precision of `gram`; entries above the diagonal mean nothing."""
    count, long = rows.shape
    for panel in panels(long, count):
        # in one layout: the library's kernels for another may round differently
        part = rows[:, panel].to(gram.dtype, memory_format=torch.contiguous_format).contiguous()
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            gram[start:stop, :stop].addmm_(part[start:stop], part[:stop].mT, alpha=scale)


def mirror(gram: Float[Tensor, "r r"]) -> Float[Tensor, "r r"]:
    """Copy the lower triangle to the upper one, in place."""
    for start in range(0, gram.shape[0], _BLOCK):
        stop = min(start + _BLOCK, gram.shape[0])
        gram[:start, start:stop] = gram[start:stop, :start].mT
        corner = gram[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).mT)
    return gram


def gram_of_rows(rows: Float[Tensor, "r l"]) -> Float[Tensor, "r r"]:
    """The lower triangle of A Aᵀ in float64, stored by columns as LAPACK wants it."""
    # zeros by columns: the transpose of zeros by rows
    gram = torch.zeros(rows.shape[0], rows.shape[0], dtype=torch.float64, device=rows.device).mT
    add_gram(gram, rows)
    return cast(Tensor, gram)


def times(
    left: Float[Tensor, "p r"], rows: Float[Tensor, "r l"], out: Float[Tensor, "p l"] | None = None
) -> Float[Tensor, "p l"]:
    """L A in float64, rounded to A's precision or that of `out`, which may be A itself where L is square."""
    wide = left.double()
    if out is None:
        out = _like(rows, left.shape[0])
    for panel in panels(rows.shape[1], max(rows.shape[0], left.shape[0])):
        out[:, panel] = wide @ rows[:, panel].double()
    return out


def add_product(
    total: Float[Tensor, "p q"], left: Float[Tensor, "p l"], right: Float[Tensor, "q l"], scale: float = 1.0
) -> None:
    """Add scale · A Bᵀ in the precision of `total`."""
    for panel in panels(left.shape[1], max(left.shape[0], right.shape[0])):
        total.addmm_(left[:, panel].to(total.dtype), right[:, panel].to(total.dtype).mT, alpha=scale)


def _like(rows: Float[Tensor, "r l"], count: int) -> Float[Tensor, "count l"]:
    """An empty matrix of that many rows, stored as `rows` is: by rows, or by columns."""
    if rows.stride(0) == 1 and rows.shape[0] > 1:
        return rows.new_empty(rows.shape[1], count).mT
    return rows.new_empty(count, rows.shape[1])
