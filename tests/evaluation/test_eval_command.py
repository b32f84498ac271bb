"""`plait eval`: one model on tasks and on a testbed, and the scores in its card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from plait.cli import app
from plait.errors import MissingModelError, TaskError
from tiny_testbeds import TASKS, write_task


def _run(*words: str | Path) -> str:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["eval", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_testbed_gives_references_and_totals(testbed: Path) -> None:
    expert = testbed / "experts" / TASKS[0]
    text = _run(expert, "--task", testbed)
    assert "100.0 %" in text and "normalised by the experts:" in text and "forgotten of the base:" in text
    data = json.loads(_run(expert, "--task", testbed, "--json"))
    first = data["tasks"][0]
    assert first["task"] == TASKS[0] and first["expert"] == first["interval"]["value"] and first["normalised"] == 1.0
    assert first["interval"]["low"] <= first["interval"]["value"] <= first["interval"]["high"]
    assert len(data["scores"][TASKS[0]]["values"]) == 80
    assert _run(expert, "--task", testbed, "--json") == _run(expert, "--task", testbed, "--json")


def test_scores_go_into_the_card(testbed: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    model = shutil.copytree(testbed / "base", tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: mit\ntags:\n- merge\n---\n\n# A merge\n\nText.\n")
    _run(model, "--task", testbed, "--card", "--limit", "8")
    _run(model, "--task", testbed / "tasks" / TASKS[0], "--card", "-q")
    text = (model / "README.md").read_text()
    assert text.count("## Evaluation") == 1 and "Text." in text and "| animals | test | accuracy |" in text
    card = ModelCard.load(model / "README.md")
    assert card.data.license == "mit" and card.data.tags == ["merge"]
    found = {result.dataset_name: result.metric_value for result in card.data.eval_results or []}
    assert set(found) == {*TASKS, "pairs"}
    head = yaml.safe_load(text.split("---")[1])
    assert head["model-index"][0]["name"] == "model"


def test_a_model_without_a_card_gets_one(testbed: Path, tmp_path: Path) -> None:
    model = shutil.copytree(testbed / "base", tmp_path / "model")
    _run(model, "--task", testbed / "tasks" / TASKS[0] / "task.json", "--card", "--quiet")
    assert "model-index" in (model / "README.md").read_text()


def test_what_is_refused(testbed: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="there is no task to score"):
        _run(testbed / "base")
    with pytest.raises(TaskError, match=r"no split 'tset'"):
        _run(testbed / "base", "--task", testbed, "--split", "tset")
    copy = shutil.copytree(testbed, tmp_path / "copy")
    shutil.rmtree(copy / "experts" / TASKS[1])
    with pytest.raises(MissingModelError, match="build the testbed again"):
        _run(copy / "base", "--task", copy)
    write_task(copy / "tasks" / "pairs", {}, kind="command", command="true {model}")
    shutil.copytree(testbed / "experts" / TASKS[1], copy / "experts" / TASKS[1])
    with pytest.raises(TaskError, match="cannot be of kind command"):
        _run(copy / "base", "--task", copy)
    (copy / "testbed.json").write_text("{}")
    with pytest.raises(TaskError, match="is not a testbed's description"):
        _run(copy / "base", "--task", copy)
