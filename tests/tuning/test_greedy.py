"""The greedy soup."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait import greedy_soup
from plait.errors import RecipeError


def _models(home: Path, values: dict[str, float]) -> dict[str, Path]:
    for name, value in values.items():
        save_file({"w": torch.full((4,), value)}, home / f"{name}.safetensors")
    return {name: home / f"{name}.safetensors" for name in values}


def _value(folder: Path) -> float:
    return float(load_file(folder / "model.safetensors")["w"].mean())


def test_only_models_that_help_stay(tmp_path: Path) -> None:
    """The best average of these is 1.0: a and b; c would pull it away."""
    models = _models(tmp_path, {"a": 0.9, "b": 1.2, "c": 3.0, "d": 0.95})
    soup = greedy_soup(models, lambda folder: -abs(_value(folder) - 1.0), tmp_path / "soup")
    # d scores best alone (0.05 away), then a (0.1), b (0.2), c (2.0): d+a is worse than d, d+b worse, d+c worse
    assert soup.ingredients == ("d",)
    assert [t.accepted for t in soup.trials] == [True, False, False, False]
    assert _value(tmp_path / "soup") == pytest.approx(0.95)
    soup = greedy_soup(_models(tmp_path, {"a": 0.8, "b": 1.1}), lambda f: -abs(_value(f) - 1.0), tmp_path / "two")
    assert soup.ingredients == ("b", "a") and _value(tmp_path / "two") == pytest.approx(0.95)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_an_evaluation_that_never_improves_gives_the_best_single_model(tmp_path: Path) -> None:
    models = _models(tmp_path, {"a": 1.0, "b": 2.0})
    calls: list[Path] = []

    def evaluate(folder: Path) -> float:
        calls.append(folder)
        return 0.0

    soup = greedy_soup(models, evaluate, tmp_path / "soup", scores={"a": 5.0, "b": 4.0})
    assert soup.ingredients == ("a",) and soup.score == 5.0 and len(calls) == 1


def test_equal_scores_start_with_the_later_model(tmp_path: Path) -> None:
    models = _models(tmp_path, {"a": 1.0, "b": 2.0})
    soup = greedy_soup(models, lambda f: 1.0, tmp_path / "soup")
    assert soup.ingredients == ("b",)


def test_scores_that_are_no_numbers(tmp_path: Path) -> None:
    models = _models(tmp_path, {"a": 1.0, "b": 2.0})
    with pytest.raises(RecipeError, match="nan"):
        greedy_soup(models, lambda f: float("nan"), tmp_path / "soup")
    with pytest.raises(RecipeError, match="no score for 'b'"):
        greedy_soup(models, lambda f: 1.0, tmp_path / "soup", scores={"a": 1.0})
    assert not (tmp_path / "soup").exists()
