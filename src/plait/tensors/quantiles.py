"""Exact quantiles of magnitudes by counting: several ranks of one vector in two rounds, blocks in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from plait.tensors.selection import Counts, Rank, count_coarse, count_fine, kth_largest, locate

__all__ = ["FineCounts", "count_coarse", "count_quantiles", "quantile", "quantile_ranks"]


@dataclass(frozen=True, eq=False)
class FineCounts:
    """Counts of the lower bits inside each coarse bin that a wanted rank lies in."""

    bins: Mapping[int, Counts]

    def __add__(self, other: FineCounts) -> FineCounts:
        return FineCounts({key: counts + other.bins[key] for key, counts in self.bins.items()})


def quantile_ranks(total: int, share: float) -> tuple[int, int, float]:
    """Ranks from the largest of the two elements around a quantile, and how far it lies towards the second.

    The quantile `share` of n sorted values stands at position share·(n − 1); between two values it is interpolated.
    """
    position = share * (total - 1)
    low = min(int(position), total - 1)
    return total - low, max(total - low - 1, 1), position - low


def _located(coarse: Counts, shares: Sequence[float]) -> list[tuple[Rank, Rank, float]]:
    ranks = [quantile_ranks(coarse.total, share) for share in shares]
    return [(locate(coarse, low), locate(coarse, high), part) for low, high, part in ranks]


def count_quantiles(values: Float[Tensor, "*n"], coarse: Counts, shares: Sequence[float]) -> FineCounts:
    """Second round: count inside the bins in which the wanted quantiles lie."""
    wanted = {rank.bin for low, high, _ in _located(coarse, shares) for rank in (low, high)}
    return FineCounts({index: count_fine(values, index) for index in sorted(wanted)})


def quantile(coarse: Counts, fine: FineCounts, share: float, *, interpolate: bool = True) -> float:
    """The exact quantile of the magnitudes, from the totals of both rounds; or the element just below it."""
    ((low, high, part),) = _located(coarse, (share,))
    part = part if interpolate else 0.0
    first, second = kth_largest(low, fine.bins[low.bin]), kth_largest(high, fine.bins[high.bin])
    return first + part * (second - first)
