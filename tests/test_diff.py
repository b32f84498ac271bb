"""`plait diff`: what experts changed, against plain definitions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from models import family, save_family
from plait.cli import app
from plait.engine import Options
from plait.errors import IncompatibleModelsError
from plait.reports import diff


def _save(home: Path, **states: dict[str, torch.Tensor]) -> dict[str, str]:
    for name, state in states.items():
        save_file(state, home / f"{name}.safetensors")
    return {name: str(home / f"{name}.safetensors") for name in states}


def test_figures_of_known_changes(tmp_path: Path) -> None:
    """Two changes of rank 2 and 3 that share one direction, in a matrix of several blocks."""
    rng = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.up_proj.weight"
    base = torch.randn(5000, 300, generator=rng)
    u, _ = torch.linalg.qr(torch.randn(5000, 4, generator=rng))
    v, _ = torch.linalg.qr(torch.randn(300, 4, generator=rng))
    a = 3 * torch.outer(u[:, 0], v[:, 0]) + 2 * torch.outer(u[:, 1], v[:, 1])
    b = 4 * torch.outer(u[:, 0], v[:, 0]) + torch.outer(u[:, 2], v[:, 2]) + torch.outer(u[:, 3], v[:, 3])
    b[:, 150:] = 0
    paths = _save(tmp_path, base={name: base * 0}, a={name: a}, b={name: b})
    found = diff(paths["base"], {"a": paths["a"], "b": paths["b"]}, options=Options(threads=2))
    figures = found.by_role()["mlp"]
    assert figures["experts"]["a"]["norm"] == pytest.approx(13**0.5, rel=1e-5)
    assert figures["experts"]["a"]["median_rank"] == 2
    assert figures["experts"]["b"]["median_rank"] == 3
    assert figures["experts"]["b"]["density"] == pytest.approx(0.5)
    pair = figures["pairs"]["a ~ b"]
    assert pair["cosine"] == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), rel=1e-4)
    both = (a != 0) & (b != 0)
    agree = ((a.sign() == b.sign()) & both).sum() / both.sum()
    assert pair["sign_agreement"] == pytest.approx(float(agree), rel=1e-6)
    # one of two leading directions of a lies in the three of b
    assert pair["subspace_overlap"] == pytest.approx(0.5, abs=1e-3)


def test_equal_and_opposite_experts(tmp_path: Path) -> None:
    base, (expert,) = family(1)
    opposite = {k: 2 * base[k] - v for k, v in expert.items()}
    names = save_family(tmp_path, base, [expert, expert, opposite])
    pairs = diff(names["base"], names["experts"]).by_role()["all"]["pairs"]
    assert pairs["e0 ~ e1"]["cosine"] == pytest.approx(1.0)
    assert pairs["e0 ~ e1"]["sign_agreement"] == 1.0
    assert pairs["e0 ~ e1"]["subspace_overlap"] == pytest.approx(1.0)
    assert pairs["e0 ~ e2"]["cosine"] == pytest.approx(-1.0, abs=1e-5)
    assert pairs["e0 ~ e2"]["sign_agreement"] == pytest.approx(0.0, abs=1e-3)


def test_an_expert_that_did_not_move(tmp_path: Path) -> None:
    base, (expert,) = family(1)
    names = save_family(tmp_path, base, [expert, base])
    figures = diff(names["base"], names["experts"]).by_role()["all"]
    assert figures["experts"]["e1"] == {"norm": 0.0, "relative_norm": 0.0, "density": 0.0, "median_rank": 0}
    assert figures["pairs"]["e0 ~ e1"] == {"cosine": None, "sign_agreement": None, "subspace_overlap": None}


def test_threads_do_not_show(tmp_path: Path) -> None:
    base, experts = family(2)
    names = save_family(tmp_path, base, experts)
    one = diff(names["base"], names["experts"], options=Options(threads=1)).as_dict()
    assert diff(names["base"], names["experts"], options=Options(threads=3)).as_dict() == one


def test_the_command(tmp_path: Path) -> None:
    base, experts = family(2)
    names = save_family(tmp_path, base, experts)
    arguments = ["diff", names["base"], names["experts"]["e0"], f"code={names['experts']['e1']}"]
    result = CliRunner().invoke(app, [*arguments, "--layers"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    for word in ("attention", "embedding", "expert0 ~ code", "sign agreement", "by layer"):
        assert word in result.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["experts"] == ["expert0", "code"]
    assert set(found["layers"]) == {"0", "1", "2"} and "model.norm.weight" in found["tensors"]
    twice = CliRunner().invoke(app, ["diff", names["base"], names["base"], names["base"]])
    assert "called 'base'" in str(twice.exception)


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    paths = _save(tmp_path, base={"w": torch.ones(3, 4)}, a={"w": torch.ones(4, 3)})
    with pytest.raises(IncompatibleModelsError, match="shapes differ"):
        diff(paths["base"], {"a": paths["a"]})
