"""Several exact order statistics of one vector per expert, in two survey rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from plait.tensors.order import count_lower, count_upper, nth_largest
from plait.tensors.selection import Rank, locate
from plait.tensors.sums import Each

__all__ = ["ROUNDS", "Wanted", "order_statistics", "survey_order"]

#: counting rounds that exact order statistics need
ROUNDS = 2

#: (expert, number of elements) → the ranks that are wanted, 1 for the largest
Wanted: TypeAlias = Callable[[int, int], Sequence[int]]


def _ranks(upper: Each, wanted: Wanted) -> list[list[Rank]]:
    return [[locate(counts, rank) for rank in wanted(i, counts.total)] for i, counts in enumerate(upper.items)]


def survey_order(values: Sequence[Tensor], facts: Sequence[Any], wanted: Wanted) -> Each:
    """Contribute one block: all upper halves in the first round, then the lower halves around each rank."""
    if not facts:
        return Each(tuple(count_upper(value) for value in values))
    ranks = _ranks(facts[0], wanted)
    return Each(
        tuple(Each(tuple(count_lower(value, r.bin) for r in own)) for value, own in zip(values, ranks, strict=True))
    )


def order_statistics(facts: Sequence[Any], wanted: Wanted) -> list[tuple[float, ...]]:
    """The numbers at the wanted ranks of each expert, from the totals of the two rounds."""
    ranks = _ranks(facts[0], wanted)
    return [
        tuple(nth_largest(rank, lower) for rank, lower in zip(own, found.items, strict=True))
        for own, found in zip(ranks, facts[1].items, strict=True)
    ]
