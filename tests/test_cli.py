"""The verbs, as a person uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from models import family, save_family
from plait.cli import app
from plait.methods import compositions, methods


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    base, experts = family(2, torch.bfloat16)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"method": "ties", **save_family(tmp_path, base, experts)}))
    return path


def test_dry_run_prints_the_plan_and_writes_nothing(recipe: Path) -> None:
    before = sorted(recipe.parent.iterdir())
    text = _run("merge", str(recipe), "--dry-run", "-o", str(recipe.parent / "out"), "--memory", "64MiB")
    for word in ("ties", "bfloat16", "MiB of tensors in flight", "pass(es)", "free", "e1"):
        assert word in text
    assert sorted(recipe.parent.iterdir()) == before


def test_merge_tells_what_it_did(recipe: Path) -> None:
    out = recipe.parent / "out"
    text = _run("merge", str(recipe), "-o", str(out))
    assert "merging" in text and "parameters" in text and str(out) in text.replace("\n", "")
    assert (out / "model.safetensors").is_file()


def test_inspect(recipe: Path) -> None:
    text = _run("inspect", str(recipe.parent / "base"))
    for word in ("model.layers.0.mlp.down_proj.weight", "32 × 48", "attention", "embedding", "bfloat16", "all"):
        assert word in text
    found = json.loads(_run("inspect", str(recipe.parent / "base"), "--json", "--match", "*norm*"))
    assert {t["role"] for t in found["tensors"]} == {"norm"}


@pytest.mark.parametrize("name", [*methods(), *compositions()])
def test_every_method_is_explained(name: str) -> None:
    text = _run("methods", name)
    for cls in [methods()[name]] if name in methods() else []:
        assert cls.formula in text
        for parameter in cls.parameters().values():
            assert parameter.label in text


def test_methods_are_listed() -> None:
    text = _run("methods")
    facts = json.loads(_run("methods", "--json"))
    assert {f["name"] for f in facts} == set(methods())
    assert all(name in text for name in methods())


def test_schema_is_json() -> None:
    assert json.loads(_run("schema"))["title"] == "plait recipe"


def test_version() -> None:
    from plait import __version__

    assert _run("--version").strip() == f"plait {__version__}"
