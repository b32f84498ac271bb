"""Two counting rounds in one: a sample says where the wanted ranks lie, one pass counts there in full resolution.

An exact threshold needs two rounds: counts of coarse bins find the bin of the rank, fine counts inside it the value.
A sample of the blocks tells the bin in advance. One pass then counts everything inside a few bins around it, and how
much lies above: if the rank falls inside, both rounds are known exactly; if not, nothing is lost but the pass. What a
round counts beside (sums, numbers of entries) is counted along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plait.kernels import Graph, Pending, Sink, Untraceable, Window, fill
from plait.tensors.selection import Counts

__all__ = ["SLACK", "Aim", "aim", "enlarged", "hit", "shifted", "windowed"]

#: share of all elements by which a sample's ranks may be off
SLACK = 0.003
#: bins on either side of a sample's rank that are counted in a row, at most
_REACH = 6
_COARSE = {"count_coarse": ("count_fine", "window_magnitudes"), "count_upper": ("count_lower", "window_numbers")}
_LAST = 65534  # bin that a window can hold: above it there must be another
_MOST = 6  # windows for one vector


@dataclass(frozen=True)
class Aim:
    """Bins to count in: of the coarse counts in sink `sink`, those in [low, low + width)."""

    sink: int
    low: int
    width: int


def _canonical(graph: Graph, index: int) -> Any:
    """A node with all it is computed from, numbers included: equal for equal computations in two graphs."""
    node = graph.nodes[index]
    own: Any = node.literal
    if node.op == "number":
        own = graph.numbers[int(node.literal or 0)]
    elif node.op == "uniform":
        own = graph.draws[int(node.literal or 0)]
    return (node.op, node.dtype, own, tuple(_canonical(graph, arg) for arg in node.args))


def _wanted(first: Graph, second: Graph) -> list[tuple[int, int, int]] | None:
    """For each fine count of the second round: (its sink, the coarse sink of the same vector, the bin)."""
    vectors = {
        (_COARSE[sink.kind][0], _canonical(first, sink.args[0])): index
        for index, sink in enumerate(first.sinks)
        if sink.kind in _COARSE
    }
    found = []
    for index, sink in enumerate(second.sinks):
        if sink.parameter is None:
            return None
        coarse = vectors.get((sink.kind, _canonical(second, sink.args[0])))
        if coarse is None:
            return None
        found.append((index, coarse, second.integers[sink.parameter]))
    return found


def _around(places: Sequence[Sequence[int]]) -> set[int]:
    """Bins in which ranks may lie.

    Args:
        places: the bins of the wanted ranks in order: as the sample says, and if it is off by SLACK either way. Bins
            between these are counted as well, but for those far from the sample's own: of a vector whose numbers are
            few and far apart, most are empty.
    """
    own = places[0]
    if len({len(found) for found in places}) > 1:  # two neighbours are in one bin here, in two there
        bounds = [(min(map(min, places)), max(map(max, places)))] * len(own)
    else:
        bounds = [(min(same), max(same)) for same in zip(*places, strict=True)]
    found = {place for way in places for place in way}
    for place, (low, high) in zip(own, bounds, strict=True):
        found.update(range(max(low, place - _REACH), min(high, place + _REACH) + 1))
    return found


def _beside(counts: Counts, place: int) -> range:
    """The bins around one that hold, on either side, SLACK of all elements, or _REACH of them: a cheaper guess."""
    bins, slack = counts.bins, SLACK * counts.total
    low = high = place
    below = above = 0.0
    while low > 0 and place - low < _REACH and (below < slack or low == place):
        low -= 1
        below += float(bins[low])
    while high < _LAST and high - place < _REACH and (above < slack or high == place):
        high += 1
        above += float(bins[high])
    return range(low, high + 1)


def enlarged(summary: Any, sampled: int, total: int) -> Any:
    """What a sample's counts would be over everything: whole numbers, of which a rank can be asked."""
    if isinstance(summary, int):
        return summary * total // sampled
    if not isinstance(summary, Counts):
        return summary
    bins = summary.bins * total // sampled
    bins[int(bins.argmax())] += total - int(bins.sum())
    return Counts(bins)


def shifted(summary: Any, share: float) -> Any:
    """Counts of which every rank lies further up, or down, by a share of all elements."""
    if not isinstance(summary, Counts) or not share:
        return summary
    bins = summary.bins if share > 0 else summary.bins.flip(0)
    moved = min(round(abs(share) * summary.total), summary.total)
    taken = torch.minimum(bins, (moved - (bins.cumsum(0) - bins)).clamp_min(0))
    bins = bins - taken
    bins[int(bins.nonzero()[-1]) if summary.total > moved else -1] += moved
    return Counts(bins if share > 0 else bins.flip(0))


def aim(first: Graph, seconds: Sequence[Graph], guess: Sequence[Any] = ()) -> list[Aim] | None:
    """Where to count; None if that cannot be.

    Args:
        first: graph of the first round.
        seconds: graphs of the second, given what a sample says, and what it would say if it were off either way.
        guess: where there is only one of these, what the first round's sinks hold for the sample.
    """
    bins: dict[int, list[set[int]]] = {}
    for number, second in enumerate(seconds):
        for _, coarse, place in _wanted(first, second) or ():
            bins.setdefault(coarse, [set() for _ in seconds])[number].add(place)
    if len(bins) != sum(sink.kind in _COARSE for sink in first.sinks) or not all(map(all, bins.values())):
        return None
    found: list[Aim] = []
    for coarse, places in bins.items():
        runs: list[Aim] = []
        if len(places) == 1:
            near = {bin for place in places[0] for bin in _beside(guess[coarse], place)}
        else:
            near = _around([sorted(way) for way in places])
        for place in sorted(near):
            if place > _LAST:
                return None
            if runs and runs[-1].low + runs[-1].width == place:
                runs[-1] = Aim(coarse, runs[-1].low, runs[-1].width + 1)
            else:
                runs.append(Aim(coarse, place, 1))
        if len(runs) > _MOST:
            return None
        found += runs
    return found


def windowed(first: Graph, aims: Sequence[Aim]) -> Graph:
    """The first round's graph, with windows in place of the coarse counts; sinks: those that stay, then the windows."""
    graph = Graph(list(first.nodes), list(first.numbers), list(first.integers), [], list(first.draws))
    graph.sinks += [sink for sink in first.sinks if sink.kind not in _COARSE]
    for a in aims:
        sink = first.sinks[a.sink]
        graph.integers += [a.low, a.width]
        graph.sinks.append(Sink(_COARSE[sink.kind][1], sink.args, len(graph.integers) - 2))
    return graph


def _lumped(total: int, aims: Sequence[tuple[Aim, Window]], bins: int) -> tuple[Counts, set[int]]:
    """Coarse counts that are exact inside the windows, and the bins they are exact in; the rest lies in lumps."""
    counts = torch.zeros(bins, dtype=torch.int64)
    exact: set[int] = set()
    above = 0
    for a, window in sorted(aims, key=lambda pair: -pair[0].low):
        inside = window.counts.bins.view(a.width, -1).sum(dim=1)
        counts[a.low : a.low + a.width] = inside
        counts[a.low + a.width] += window.above - above
        exact.update(range(a.low, a.low + a.width))
        above = window.above + int(inside.sum())
    lowest = min(a.low for a, _ in aims)
    if lowest:
        counts[lowest - 1] += total - above
    return Counts(counts), exact


def hit(
    first: tuple[Graph, Any],
    aims: Sequence[Aim],
    results: Sequence[Any],
    total: int,
    second: Callable[[Any], tuple[Graph, Any]],
) -> tuple[Any, Any] | None:
    """Turn what the one pass counted into the totals of both rounds; None where a rank lies outside the windows.

    Args:
        first: graph and tree of the first round.
        aims: the windows.
        results: what the sinks of the windowed graph hold.
        total: number of elements.
        second: traces the second round, given the totals of the first.
    """
    graph, tree = first
    others = [index for index, sink in enumerate(graph.sinks) if sink.kind not in _COARSE]
    windows = list(zip(aims, results[len(others) :], strict=True))
    values: dict[int, Any] = dict(zip(others, results, strict=False))
    exact: dict[int, set[int]] = {}
    for index, sink in enumerate(graph.sinks):
        if sink.kind in _COARSE:
            own = [(a, w) for a, w in windows if a.sink == index]
            values[index], exact[index] = _lumped(total, own, 1 << 16)
    coarse = fill(tree, lambda pending: values[pending.index])
    try:
        following, finer = second(coarse)
    except Untraceable:
        return None
    wanted = _wanted(graph, following)
    if wanted is None or any(place not in exact[index] for _, index, place in wanted):
        return None
    fine: dict[int, Counts] = {}
    for sink, index, place in wanted:
        a, window = next((a, w) for a, w in windows if a.sink == index and a.low <= place < a.low + a.width)
        fine[sink] = Counts(window.counts.bins.view(a.width, -1)[place - a.low].clone())

    def filled(pending: Pending) -> Counts:
        return fine[pending.index]

    return coarse, fill(finer, filled)
