"""Where a sample says that the rank of a threshold lies, and how far off it may be."""

from __future__ import annotations

import pytest
import torch

from plait.engine._speculate import Aim, aim, enlarged, shifted
from plait.kernels import Graph, Sink
from plait.tensors.selection import Counts, locate

BINS = 1 << 16


def counts(of: dict[int, int]) -> Counts:
    bins = torch.zeros(BINS, dtype=torch.int64)
    for index, count in of.items():
        bins[index] = count
    return Counts(bins)


def graphs(*places: tuple[int, ...]) -> tuple[Graph, list[Graph]]:
    """A first round that counts one vector, and second rounds that count in the given bins of it."""
    first, seconds = Graph(), []
    node = first.add("input", (), torch.float32, 0)
    first.sinks.append(Sink("count_coarse", (node,)))
    for bins in places:
        second = Graph()
        node = second.add("input", (), torch.float32, 0)
        for place in bins:
            second.integers.append(place)
            second.sinks.append(Sink("count_fine", (node,), len(second.integers) - 1))
        seconds.append(second)
    return first, seconds


@pytest.mark.parametrize("share", [0.1, -0.1, 0.0])
def test_a_shift_moves_every_rank_by_its_share(share: float) -> None:
    before = counts({10: 300, 20: 100, 30: 400, 40: 200})
    after = shifted(before, share)
    assert after.total == before.total == 1000
    for rank in range(150, 850, 50):
        assert locate(after, rank).bin == locate(before, rank - round(1000 * share)).bin
    assert after.bins[: 10 + 1].sum() + after.bins[11:41].sum() == 1000  # nothing beyond what the sample has seen


def test_a_shift_of_everything_leaves_the_number_of_elements() -> None:
    assert shifted(counts({7: 3}), 1.0).total == 3
    assert shifted(5, 0.1) == 5
    assert enlarged(counts({7: 3, 9: 5}), 8, 1000).total == 1000


@pytest.mark.parametrize(
    ("places", "found"),
    [
        (((100,), (100,), (100,)), [(100, 1)]),  # well inside a bin: nothing else is counted in
        (((100,), (101,), (98,)), [(98, 4)]),
        (((100,), (100,), (40,)), [(40, 1), (94, 7)]),  # numbers far apart: the next one, and little between
        (((100, 200), (100, 201), (99, 200)), [(99, 2), (200, 2)]),
        (((100, 101), (101,), (100,)), [(100, 2)]),  # both in one bin if the sample is off
    ],
)
def test_windows_reach_as_far_as_the_ranks_may_be_off(
    places: tuple[tuple[int, ...], ...], found: list[tuple[int, int]]
) -> None:
    first, seconds = graphs(*places)
    assert aim(first, seconds) == [Aim(0, low, width) for low, width in found]


def test_nothing_is_aimed_at_the_last_bin_or_without_a_bin() -> None:
    assert aim(*graphs((BINS - 1,), (BINS - 1,), (BINS - 1,))) is None
    assert aim(*graphs((), (), ())) is None
