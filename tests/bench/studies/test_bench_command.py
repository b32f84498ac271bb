"""`plait bench`: the files that it leaves and what it prints."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plait.cli import app
from plait.errors import RecipeError


def _run(*words: str | Path) -> str:
    done = CliRunner().invoke(app, ["bench", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_tables_in_every_form(testbeds: list[Path], tmp_path: Path) -> None:
    words = [testbeds[0], "-m", "linear,model_stock", "--out", tmp_path / "out", "--landscape", "0", "--no-html"]
    words += ["--limit", "40"]
    text = _run(*words)
    assert "model_stock" in text and "% of experts" in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == [row["method"] for row in results["table"]]
    assert float(rows[0]["normalised"]) == results["table"][0]["figures"]["normalised"]["value"]
    assert _run(*words, "--markdown", "-q") == (tmp_path / "out" / "table.md").read_text()
    assert json.loads(_run(*words, "--json", "-q")) == results
    assert {run["figures"].keys() >= {"normalised", "gain", "raw"} for run in results["runs"]} == {True}
    assert not (tmp_path / "out" / "report.html").exists()
    assert "seconds" not in (tmp_path / "out" / "results.json").read_text()


def test_seeds_are_numbers() -> None:
    with pytest.raises(RecipeError, match="seeds are whole numbers"):
        _run("encoder", "--seeds", "one")
