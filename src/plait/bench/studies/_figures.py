"""From scores to figures: what a run is worth, with every draw of the bootstrap; means over runs; tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from plait.bench.studies._run import References, Run
from plait.errors import EvaluationError
from plait.evaluation import Interval, Resamples, Scores, forgetting, gain, normalised, paired_test, raw

__all__ = ["FIGURES", "Array", "figures_of", "mean_of_runs", "same_mean"]

Array: TypeAlias = NDArray[np.float64]

#: figure → what it says, and whether more is better
FIGURES: dict[str, tuple[str, bool]] = {
    "normalised": ("score by the task's own expert, mean over the merged experts' tasks", True),
    "gain": ("share of (expert − base) that is kept, over the merged experts' tasks", True),
    "raw": ("mean score on the merged experts' tasks", True),
    "forgetting": ("1 − score by the base, on what the base could do before", False),
    "over_best": ("mean score on all tasks, minus that of the best merged expert alone", True),
    "beats_base": ("1 if the mean score on all tasks is above the base's", True),
    "held_out": ("score by the base, mean over the tasks of experts that were not merged", True),
}


def _signed(scores: Scores, resamples: Resamples) -> Array:
    values = resamples.values(scores)
    return values if scores.higher_is_better else -values


def figures_of(run: Run, references: References, resamples: Resamples) -> dict[str, Array]:
    """Every figure that exists for a run: its value at place 0, then those of the draws.

    Args:
        run: a run with scores on test.
        references: scores of its pool's base and experts.
        resamples: the draws.
    """
    assert run.test is not None and run.test.scores is not None
    scores, pool = run.test.scores, run.pool
    own = [task.name for task in pool.own(run.subset)]
    held = {name: scores[name] for name in own or [task.name for task in pool.others.values()]}
    found = {"raw": raw(held, resamples)}
    if own:
        found |= _where_defined("normalised", lambda: normalised(held, references.own, resamples))
        found |= _where_defined("gain", lambda: gain(held, references.base, references.own, resamples))
    retained = {task.name: scores[task.name] for task in pool.retained.values()}
    if retained:
        found |= _where_defined("forgetting", lambda: forgetting(retained, references.base, resamples))
    others = {name: one for name, one in scores.items() if name not in held and name not in retained}
    if others and own:
        found |= _where_defined("held_out", lambda: 1 - forgetting(others, references.base, resamples))
    if references.experts:
        everything = [name for name in scores if name not in retained]

        def mean(suite: Mapping[str, Scores]) -> Array:
            return np.mean([_signed(suite[name], resamples) for name in everything], axis=0)

        alone = [mean(references.experts[name]) for name in run.subset]
        best = max(alone, key=lambda values: float(values[0]))
        found["over_best"] = mean(scores) - best
        found["beats_base"] = (mean(scores) > mean(references.base)).astype(np.float64)
    return found


def _where_defined(name: str, figure: object) -> dict[str, Array]:
    assert callable(figure)
    try:
        return {name: figure()}
    except EvaluationError:
        return {}  # a reference of 0, or experts no better than the base: the figure does not exist


def mean_of_runs(values: Sequence[Array], seed: int, over_runs: bool) -> Interval:
    """Mean of a figure over runs, with a 95 % interval.

    Args:
        values: the figure of each run, with its draws.
        seed: seed of the draws of runs.
        over_runs: also draw the runs: they are a sample of all subsets. Two or three seeds are no sample to draw from;
            there the interval is of the examples alone.
    """
    stacked = np.stack(values)  # runs × draws
    if not over_runs or len(values) < 3:
        return Resamples.interval(stacked.mean(axis=0))
    picks = np.random.default_rng(seed).integers(0, len(values), size=(stacked.shape[1], len(values)))
    picks[0] = np.arange(len(values))
    return Resamples.interval(np.take_along_axis(stacked.T, picks, axis=1).mean(axis=1))


def same_mean(first: Sequence[Run], second: Sequence[Run], references: Mapping[int, References], seed: int) -> float:
    """p-value of the paired test that two methods have the same mean normalised score over the same runs."""
    suites: tuple[dict[str, Scores], dict[str, Scores], dict[str, Scores]] = ({}, {}, {})
    for number, (one, two) in enumerate(zip(first, second, strict=True)):
        assert one.test is not None and one.test.scores and two.test is not None and two.test.scores
        known = references[number].own
        tasks = [task.name for task in one.pool.own(one.subset)]
        tasks = tasks or [task.name for task in one.pool.others.values()]
        for name in tasks:
            key = f"{number}/{name}"
            suites[0][key], suites[1][key] = one.test.scores[name], two.test.scores[name]
            if name in known:
                suites[2][key] = known[name]
    scaled = suites[2] if set(suites[2]) == set(suites[0]) and all(s.value > 0 for s in suites[2].values()) else None
    return paired_test(suites[0], suites[1], scaled, seed=seed)
