"""Trimming by magnitude as a building block: rank rules, survey rounds and masks shared by several papers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, Literal

from torch import Tensor

from plait.tensors.selection import (
    Counts,
    Rank,
    at_least,
    count_coarse,
    count_fine,
    kth_largest,
    locate,
    row_threshold,
)
from plait.tensors.streams import Stream
from plait.tensors.sums import Each, norm1

__all__ = [
    "ROUNDS",
    "TrimRule",
    "l1_factors",
    "l1_sums",
    "per_expert",
    "rank_kept",
    "survey_thresholds",
    "thresholds",
    "trim",
    "trim_rows",
]

#: counting rounds that an exact threshold needs
ROUNDS = 2
#: rows of a streamed matrix that are counted at a time
_ROWS = 256

TrimRule = Literal["inclusive", "mask_rate", "mask_drop", "exact"]
"""How `density` becomes a rank. References disagree by one entry:

- `inclusive` (TIES authors): threshold = the (n − int(n·density))-th smallest magnitude, which itself is kept: k + 1.
- `mask_rate` (MergeLM): threshold = the int(n·(1 − density))-th smallest, itself kept.
- `mask_drop` (MergeLM's magnitude DARE): that entry is dropped: int(n·(1 − density)) are.
- `exact` (mergekit): the max(1, int(n·density)) largest.

Entries that equal the threshold are always kept together, so the result does not depend on any order.
"""


def per_expert(value: float | tuple[float, ...], count: int) -> tuple[float, ...]:
    """Spread one number over the experts, or return the numbers given for each."""
    return value if isinstance(value, tuple) else (value,) * count


def rank_kept(total: int, density: float, rule: TrimRule) -> int:
    """Rank (from the largest, 1 ≤ rank ≤ total) of the smallest magnitude that is kept."""
    if rule == "inclusive":
        rank = int(total * density) + 1
    elif rule == "mask_rate":
        rank = total - int(total * round(1.0 - density, 12)) + 1
    elif rule == "mask_drop":
        rank = total - int(total * round(1.0 - density, 12))
    else:
        rank = int(density * total)
    return min(max(rank, 1), total)


def survey_thresholds(
    deltas: Sequence[Tensor], facts: Sequence[Any], densities: Sequence[float], rule: TrimRule
) -> Each:
    """Contribute one block's counts: coarse in the first round, fine around the wanted rank in the second."""
    if isinstance(deltas, Stream):
        return Each(tuple(_by_rows(deltas, i, facts, densities, rule) for i in range(len(deltas))))
    if not facts:
        return Each(tuple(count_coarse(delta) for delta in deltas))
    ranks = _ranks(facts[0], densities, rule)
    return Each(tuple(count_fine(delta, rank.bin) for delta, rank in zip(deltas, ranks, strict=True)))


def _by_rows(deltas: Stream, index: int, facts: Sequence[Any], densities: Sequence[float], rule: TrimRule) -> Counts:
    """The counts of one matrix that is made for it, a few rows at a time: counting takes several times their size."""
    rank = _ranks(facts[0], densities, rule)[index] if facts else None
    matrix = deltas[index]
    parts = (count_coarse(part) if rank is None else count_fine(part, rank.bin) for part in matrix.split(_ROWS))
    return reduce(add, parts)


def thresholds(facts: Sequence[Any], densities: Sequence[float], rule: TrimRule) -> tuple[float, ...]:
    """The exact threshold of each expert, from the totals of the two rounds; 0 where nothing is trimmed."""
    ranks = _ranks(facts[0], densities, rule)
    return tuple(
        0.0 if density >= 1 else kth_largest(rank, facts[1][i])
        for i, (density, rank) in enumerate(zip(densities, ranks, strict=True))
    )


def _ranks(coarse: Each, densities: Sequence[float], rule: TrimRule) -> list[Rank]:
    pairs = zip(coarse.items, densities, strict=True)
    return [locate(counts, rank_kept(counts.total, density, rule)) for counts, density in pairs]


def trim(deltas: Sequence[Tensor], limits: Sequence[float]) -> tuple[Tensor, ...]:
    """Zero every entry below its expert's threshold."""
    return tuple(delta * at_least(delta, limit) for delta, limit in zip(deltas, limits, strict=True))


def trim_rows(deltas: Sequence[Tensor], densities: Sequence[float], rule: TrimRule) -> tuple[Tensor, ...]:
    """Zero every entry below its row's threshold."""
    kept = []
    for delta, density in zip(deltas, densities, strict=True):
        if density >= 1:
            kept.append(delta)
            continue
        limit = row_threshold(delta, rank_kept(delta.shape[-1], density, rule))
        kept.append(delta * (delta.abs().to(limit.dtype) >= limit))
    return tuple(kept)


def l1_sums(before: Sequence[Tensor], after: Sequence[Tensor]) -> Each:
    """Σ|τ| before and after a sparsifier, per expert."""
    return Each(tuple(Each((norm1(a), norm1(b))) for a, b in zip(before, after, strict=True)))


def l1_factors(total: Each) -> tuple[float, ...]:
    """Factors that restore each expert's L1 norm; 1 where nothing is left to scale."""
    return tuple(float(a) / float(b) if float(b) > 0 else 1.0 for a, b in (pair.items for pair in total.items))
