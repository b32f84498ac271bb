"""Figures and their uncertainty, against closed forms and coverage."""

from __future__ import annotations

import numpy as np
import pytest

from plait.errors import EvaluationError
from plait.evaluation import Resamples, Scores, forgetting, gain, holm, normalised, paired_test, raw


def _bernoulli(task: str, p: float, n: int, seed: int) -> Scores:
    return Scores.of(task, "accuracy", (np.random.default_rng(seed).random(n) < p).astype(float).tolist())


def _constant(task: str, value: float, metric: str = "accuracy", n: int = 4) -> Scores:
    return Scores.of(task, metric, [value] * n)


def test_figures_by_hand() -> None:
    model = {"a": _constant("a", 0.6), "b": _constant("b", 2.0, "bits_per_byte")}
    base = {"a": _constant("a", 0.2), "b": _constant("b", 3.0, "bits_per_byte")}
    experts = {"a": _constant("a", 0.8), "b": _constant("b", 1.5, "bits_per_byte")}
    draws = Resamples(draws=10)
    assert raw(model, draws)[0] == pytest.approx(1.3)
    assert normalised(model, experts, draws)[0] == pytest.approx((0.75 + 0.75) / 2)
    assert gain(model, base, experts, draws)[0] == pytest.approx((0.4 + 1.0) / (0.6 + 1.5))
    assert forgetting(model, base, draws)[0] == pytest.approx(1 - (3 + 1.5) / 2)
    assert Resamples.interval(normalised(model, experts, draws)).low == pytest.approx(0.75)


def test_weighted_scores_are_means_over_weights() -> None:
    scores = Scores.of("t", "bits_per_byte", [1.0, 4.0], [3, 1])
    assert scores.value == 1.75 == Resamples(draws=5).values(scores)[0]


def test_the_interval_covers_as_often_as_it_says() -> None:
    hits = 0
    for trial in range(200):
        scores = _bernoulli("t", 0.7, 150, trial)
        found = Resamples.interval(Resamples(seed=trial, draws=300).values(scores))
        hits += found.low <= 0.7 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_draws_are_paired_and_repeatable() -> None:
    one, two = _bernoulli("t", 0.5, 100, 0), _bernoulli("t", 0.9, 100, 1)
    assert np.array_equal(Resamples(3).values(one), Resamples(3).values(one))
    assert not np.array_equal(Resamples(3).values(one), Resamples(4).values(one))
    draws = Resamples(3)
    better = Scores.of("t", "accuracy", (one.values + 1).tolist())
    assert (draws.values(better) - draws.values(one) == pytest.approx(1.0)) and len(draws.values(two)) == 1001


def test_the_paired_test_is_uniform_without_a_difference_and_small_with_one() -> None:
    values = []
    for trial in range(150):
        rng = np.random.default_rng(trial)
        one, two = ({"t": Scores.of("t", "m", rng.normal(size=60).tolist())} for _ in range(2))
        values.append(paired_test(one, two, draws=400))
    assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.11
    assert 0.4 <= np.mean(values) <= 0.6
    low, high = {"t": _bernoulli("t", 0.4, 300, 0)}, {"t": _bernoulli("t", 0.7, 300, 1)}
    assert paired_test(low, high, draws=2000) < 0.001
    assert paired_test(low, low) == 1.0
    assert paired_test(low, high, draws=500) == paired_test(high, low, draws=500)


def test_the_paired_test_finds_the_exact_value_of_a_small_case() -> None:
    # differences 1, 1, 1: of the 8 signs two give a sum of 3 in absolute value
    one, two = {"t": _constant("t", 1.0, n=3)}, {"t": _constant("t", 0.0, n=3)}
    assert paired_test(one, two, draws=20_000) == pytest.approx(0.25, abs=0.01)


def test_scores_of_other_examples_are_refused() -> None:
    with pytest.raises(EvaluationError, match="4 and 3 scores cannot be paired"):
        paired_test({"t": _constant("t", 1.0)}, {"t": _constant("t", 1.0, n=3)})
    with pytest.raises(EvaluationError, match="expert's score on 't' is 0:"):
        normalised({"t": _constant("t", 1.0)}, {"t": _constant("t", 0.0)}, Resamples(draws=3))
    with pytest.raises(EvaluationError, match="no better than the base"):
        gain(*({"t": _constant("t", 1.0)} for _ in range(3)), Resamples(draws=3))


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_scores_survive_json() -> None:
    import json

    scores = Scores.of("t", "bits_per_byte", [0.1, 1 / 3], [2, 7])
    again = Scores.from_dict(json.loads(json.dumps(scores.as_dict())))
    assert again.as_dict() == scores.as_dict() and not again.higher_is_better
