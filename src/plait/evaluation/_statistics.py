"""What scores say and how sure it is: normalised score, gain, forgetting, intervals, paired tests.

All intervals and tests resample examples within each task, and draw the same examples for every model: two models are
compared on equal draws. What they do not know is how another training seed would have come out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plait.errors import EvaluationError
from plait.evaluation._scores import Scores

__all__ = ["Interval", "Resamples", "Suite", "forgetting", "gain", "holm", "normalised", "paired_test", "raw"]

Suite = Mapping[str, Scores]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float


def _generator(seed: int, *words: object) -> np.random.Generator:
    digest = hashlib.sha256(repr((seed, *words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


class Resamples:
    """Bootstrap draws of the examples of tasks, the same for every model.

    Args:
        seed: what the draws come from, with the task's name and size.
        draws: number of draws.
    """

    def __init__(self, seed: int = 0, draws: int = 1000) -> None:
        self.seed, self.draws = seed, draws
        self._counts: dict[tuple[str, int], Array] = {}

    def values(self, scores: Scores) -> Array:
        """The score of every draw ["draws"], after that of the split itself at place 0."""
        size = len(scores.values)
        key = (scores.task, size)
        if key not in self._counts:
            drawn = _generator(self.seed, *key).multinomial(size, np.full(size, 1 / size), size=self.draws)
            self._counts[key] = np.concatenate([np.ones((1, size)), drawn.astype(np.float64)])
        counts = self._counts[key]
        weights = np.ones(size) if scores.weights is None else scores.weights
        # sums along a row, not a matrix product: their order does not depend on threads
        return (counts * (weights * scores.values)).sum(axis=1) / (counts * weights).sum(axis=1)

    @staticmethod
    def interval(values: Array, level: float = 0.95) -> Interval:
        """Percentile interval of what was computed from `values`."""
        low, high = np.nanquantile(values[1:], [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(values[0]), float(low), float(high))


def _ratio(above: Array, below: Array, higher_is_better: bool, what: str) -> Array:
    above, below = (above, below) if higher_is_better else (below, above)
    if not below[0] > 0:
        raise EvaluationError(f"{what} is 0: nothing can be divided by it.")
    # a draw without a single hit has no quotient: it is left out of the interval
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)


def raw(model: Suite, resamples: Resamples) -> Array:
    """Mean over tasks of the score."""
    return np.mean([resamples.values(scores) for scores in model.values()], axis=0)


def normalised(model: Suite, experts: Suite, resamples: Resamples) -> Array:
    """Mean over tasks of the score divided by that of the task's own expert (its inverse where less is better).

    Args:
        model: scores of the merged model.
        experts: task → scores on it of its own expert.
        resamples: the draws.
    """
    parts = []
    for task, scores in model.items():
        own = resamples.values(experts[task])
        parts.append(_ratio(resamples.values(scores), own, scores.higher_is_better, f"the expert's score on {task!r}"))
    return np.mean(parts, axis=0)


def gain(model: Suite, base: Suite, experts: Suite, resamples: Resamples) -> Array:
    """Σ over tasks of (merged − base) ÷ Σ of (expert − base): the share of what fine-tuning gained that is kept.

    One quotient of sums and not a mean of quotients: a task on which the expert gained next to nothing would decide a
    mean alone.
    """
    kept, possible = np.zeros(resamples.draws + 1), np.zeros(resamples.draws + 1)
    for task, scores in model.items():
        sign = 1.0 if scores.higher_is_better else -1.0
        start = resamples.values(base[task])
        kept += sign * (resamples.values(scores) - start)
        possible += sign * (resamples.values(experts[task]) - start)
    if not possible[0] > 0:
        raise EvaluationError("the experts are no better than the base: there is no gain to keep.")
    return np.divide(kept, possible, out=np.full_like(possible, np.nan), where=possible > 0)


def forgetting(model: Suite, base: Suite, resamples: Resamples) -> Array:
    """1 − mean over the retained tasks of the score divided by the base's: what was lost of what the base could do."""
    parts = []
    for task, scores in model.items():
        start = resamples.values(base[task])
        parts.append(_ratio(resamples.values(scores), start, scores.higher_is_better, f"the base's score on {task!r}"))
    return 1 - np.mean(parts, axis=0)


def paired_test(
    first: Suite, second: Suite, experts: Suite | None = None, *, seed: int = 0, draws: int = 10_000
) -> float:
    """Two-sided p-value of a paired permutation test: are the mean scores over tasks of two models the same?

    If they are, each example's two scores could be exchanged; their difference gets a random sign in every draw.

    Args:
        first: scores of one model.
        second: scores of the other, on the same examples.
        experts: divide each task by its expert's score, as the normalised score does.
        seed: what the signs come from.
        draws: number of permutations.
    """
    parts = []
    for task, mine in first.items():
        other = second[task]
        if len(mine.values) != len(other.values):
            raise EvaluationError(f"task {task!r}: {len(mine.values)} and {len(other.values)} scores cannot be paired.")
        weights = np.ones(len(mine.values)) if mine.weights is None else mine.weights
        scale = 1.0 if experts is None else 1 / experts[task].value
        parts.append((mine.values - other.values) * weights / weights.sum() * scale)
    differences = np.concatenate(parts)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    observed = abs(float(differences.sum()))
    generator, extreme, done = _generator(seed, "signs", len(differences)), 0, 0
    while done < draws:
        count = min(draws - done, max(1, (1 << 22) // len(differences)))
        signs = generator.integers(0, 2, size=(count, len(differences)), dtype=np.int8) * 2.0 - 1.0
        # sums that are equal but for rounding count as equal
        extreme += int((np.abs((signs * differences).sum(axis=1)) >= observed * (1 - 1e-12)).sum())
        done += count
    return (extreme + 1) / (draws + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests so that the chance of any false finding stays bounded (Holm 1979)."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = highest
    return adjusted
