"""Figures of a run, their means over runs, and their order, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plait.bench.studies._figures import figures_of, mean_of_runs
from plait.bench.studies._run import References
from plait.evaluation import Resamples, Scores


def _suite(metric: str = "accuracy", **values: float) -> dict[str, Scores]:
    return {name: Scores.of(name, metric, [value] * 3) for name, value in values.items()}


def _run(scores: dict[str, Scores], subset: tuple[str, ...]) -> Any:
    tasks = {name: SimpleNamespace(name=name) for name in "abc"}
    retained = {"r": SimpleNamespace(name="r")}
    pool = SimpleNamespace(tasks=tasks, others={}, retained=retained, own=lambda names: [tasks[name] for name in names])
    return SimpleNamespace(test=SimpleNamespace(scores=scores), pool=pool, subset=subset)


def test_a_subset_has_tasks_of_its_own_and_tasks_of_others() -> None:
    scores = _suite(a=0.6, b=0.3, c=0.45, r=0.2)
    references = References(
        _suite(a=0.2, b=0.1, c=0.5, r=0.4),
        _suite(a=0.8, b=0.5, c=0.9),
        {"a": _suite(a=0.8, b=0.1, c=0.3), "b": _suite(a=0.1, b=0.5, c=0.0), "c": _suite(a=0.9, b=0.9, c=0.9)},
    )
    found = {
        name: float(v[0]) for name, v in figures_of(_run(scores, ("a", "b")), references, Resamples(draws=5)).items()
    }
    assert found["raw"] == pytest.approx(0.45)
    assert found["normalised"] == pytest.approx((0.75 + 0.6) / 2)
    assert found["gain"] == pytest.approx((0.4 + 0.2) / (0.6 + 0.4))
    assert found["held_out"] == pytest.approx(0.9)
    assert found["forgetting"] == pytest.approx(0.5)
    assert found["over_best"] == pytest.approx(0.45 - 0.4)  # of the merged experts; the better c was not merged
    assert found["beats_base"] == 1.0


def test_less_is_better_for_losses() -> None:
    scores = _suite("bits_per_byte", a=2.0, b=2.0, c=3.0, r=2.0)
    references = References(
        _suite("bits_per_byte", a=4.0, b=4.0, c=3.0, r=1.0),
        _suite("bits_per_byte", a=1.0, b=1.0, c=1.0),
        {name: _suite("bits_per_byte", a=3.0, b=3.0, c=3.0) for name in "abc"},
    )
    found = {
        name: float(v[0]) for name, v in figures_of(_run(scores, ("a", "b")), references, Resamples(draws=5)).items()
    }
    assert found["normalised"] == 0.5 and found["gain"] == pytest.approx(2 / 3) and found["held_out"] == 1.0
    assert found["over_best"] == pytest.approx(3 - 7 / 3) and found["beats_base"] == 1.0 and found["forgetting"] == 0.5


def test_figures_without_a_reference_do_not_exist() -> None:
    nothing = _suite(a=0.0, b=0.0, c=0.0, r=0.0)
    found = figures_of(
        _run(_suite(a=0.5, b=0.5, c=0.5, r=0.5), ("a", "b")), References(nothing, nothing, {}), Resamples(draws=5)
    )
    assert set(found) == {"raw"}


def test_subsets_are_drawn_and_seeds_are_not() -> None:
    values = [np.full(201, float(value)) for value in (0.0, 1.0, 0.0, 1.0, 1.0)]
    drawn = mean_of_runs(values, 0, over_runs=True)
    assert drawn.value == 0.6 and drawn.low < 0.4 and drawn.high > 0.8
    fixed = mean_of_runs(values, 0, over_runs=False)
    assert (fixed.value, fixed.low, fixed.high) == pytest.approx((0.6, 0.6, 0.6))
