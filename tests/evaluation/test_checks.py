"""What cannot be scored is said before any work, each cause in its own words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from plait.errors import CheckpointError, EvaluationError, MissingModelError, TaskError
from plait.evaluation import Candidate, evaluate, load_task
from tiny_testbeds import text_rows, write_encoder, write_task


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Candidate, way: str) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Candidate, "loaded", refuse)


LABELS = ["a", "b", "c", "d"]


def _task(folder: Path, rows: list[dict[str, Any]] | None = None, **content: Any) -> Path:
    content = {"kind": "classification", "labels": LABELS, **content}
    return write_task(folder / "task", {"test": text_rows(0, 8) if rows is None else rows}, **content)


def _head(folder: Path, classes: int = 4, width: int = 16) -> str:
    save_file({"weight": torch.zeros(classes, width), "bias": torch.zeros(classes)}, folder / "head.safetensors")
    return "../head.safetensors"


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "label outside": (lambda f: _task(f, labels=LABELS[:2], head=_head(f, 2)), "label 2 is outside of its label space"),
    "head of other classes": (lambda f: _task(f, head=_head(f, 5)), "4 labels, but its head .* has 5 classes"),
    "head of another width": (lambda f: _task(f, head=_head(f, 4, 99)), "features of width 99, the model's are 16"),
    "no head at all": (lambda f: _task(f), "brings no head, and the model has no classifier"),
    "head missing": (lambda f: _task(f, head="../nowhere.safetensors"), "the head .* cannot be read"),
    "one class in the data": (
        lambda f: _task(f, [{"text": "w1", "label": 1}] * 3, head=_head(f)),
        "every example has the class 'b'",
    ),
    "one label": (lambda f: _task(f, labels=["a"], head=_head(f, 1)), r"1 label\(s\); a classification needs two"),
    "empty file": (lambda f: _task(f, [], head=_head(f)), "test.jsonl is empty"),
    "row without label": (
        lambda f: _task(f, [{"text": "w1"}], head=_head(f)),
        "line 1: a row needs 'label', of type int",
    ),
    "not causal": (lambda f: _task(f, [{"text": "w"}], kind="language_modelling"), "needs a causal language model"),
    "empty text": (lambda f: _task(f, [{"text": ""}], kind="language_modelling"), "the text of example 0 is empty"),
    "no image": (lambda f: _images(f), "it classifies images, and the model .* takes none"),
    "answer outside": (
        lambda f: _task(f, [{"prompt": "p", "choices": ["a", "b"], "answer": 2}], kind="multiple_choice"),
        "the answer of example 0 is 2, outside of its 2 choices",
    ),
    "one document": (
        lambda f: _task(f, [{"query": "w1", "document": "w2"}] * 2, kind="retrieval"),
        "all examples have one document",
    ),
    "unknown metric": (
        lambda f: _task(f, head=_head(f), metric="f1"),
        "has no metric 'f1'; it has accuracy, cross_entropy",
    ),
    "command without a place": (lambda f: _task(f, kind="command", command="ls"), "must hold {model}"),
    "function without a name": (
        lambda f: _task(f, kind="callable", callable="json"),
        "must be 'package.module:function'",
    ),
    "function missing": (lambda f: _task(f, kind="callable", callable="json:nothing"), "json:nothing cannot be found"),
    "harness without tasks": (lambda f: _task(f, kind="lm_eval"), "must name tasks of lm-eval"),
    "no such Python": (
        lambda f: _task(f, kind="lm_eval", tasks=["a"], python="/no/python"),
        "/no/python cannot be run",
    ),
}


def _images(folder: Path) -> Path:
    path = _task(folder, kind="image_classification", head=_head(folder))
    save_file(
        {"images": torch.zeros(4, 8, 8, dtype=torch.uint8), "labels": torch.arange(4)}, path.parent / "test.jsonl"
    )
    return path


@pytest.mark.parametrize("case", CASES)
def test_refused_before_any_work(case: str, encoder: Path, tmp_path: Path) -> None:
    make, message = CASES[case]
    with pytest.raises(TaskError, match=message):
        evaluate(encoder, [load_task(make(tmp_path))])


def test_a_missing_split(encoder: Path, tmp_path: Path) -> None:
    task = load_task(_task(tmp_path, head=_head(tmp_path)))
    with pytest.raises(TaskError, match=r"no split 'tset'. Did you mean 'test'\? Its splits are test"):
        evaluate(encoder, [task], "tset")
    (tmp_path / "task" / "test.jsonl").unlink()
    with pytest.raises(TaskError, match=r"test\.jsonl is missing"):
        evaluate(encoder, [task])


def test_images_of_another_size(vision: Path, tmp_path: Path) -> None:
    path = _images(tmp_path)
    images = torch.zeros(4, 9, 9, dtype=torch.uint8)
    save_file({"images": images, "labels": torch.arange(4)}, path.parent / "test.jsonl")
    with pytest.raises(TaskError, match="its images are 9 × 9 pixels, the model takes 8 × 8"):
        evaluate(vision, [load_task(path)])
    save_file({"images": images.float(), "labels": torch.arange(4)}, path.parent / "test.jsonl")
    with pytest.raises(TaskError, match=r"images torch\.float32"):
        evaluate(vision, [load_task(path)])


def test_label_names_of_the_models_own_classifier(tmp_path: Path) -> None:
    model = write_encoder(
        tmp_path / "model",
        "BertForSequenceClassification",
        id2label=dict(enumerate("abdc")),
        label2id={letter: i for i, letter in enumerate("abdc")},
    )
    with pytest.raises(TaskError, match="the labels are a, b, c, d, those of the model's classifier a, b, d, c"):
        evaluate(model, [load_task(_task(tmp_path))])


def test_task_files_are_strict(tmp_path: Path) -> None:
    path = _task(tmp_path, spilts={})
    with pytest.raises(TaskError, match=r"unknown key 'spilts'. Did you mean 'splits'\?"):
        load_task(path)
    path.write_text(json.dumps({"name": "x", "kind": "sorting"}))
    with pytest.raises(TaskError, match="kind: input should be 'classification'"):
        load_task(path)
    path.write_text("{")
    with pytest.raises(TaskError, match="cannot be read"):
        load_task(path)
    with pytest.raises(TaskError, match="there is no task file"):
        load_task(tmp_path / "nothing.json")


def test_a_bad_task_stops_good_ones(encoder: Path, tmp_path: Path) -> None:
    good = load_task(_task(tmp_path, head=_head(tmp_path)))
    bad = load_task(write_task(tmp_path / "bad", {"test": []}, kind="retrieval"))
    with pytest.raises(TaskError, match="is empty"):
        evaluate(encoder, [good, bad])
    with pytest.raises(TaskError, match="two tasks are called 'task'"):
        evaluate(encoder, [good, good])
    with pytest.raises(TaskError, match="no task to score"):
        evaluate(encoder, [])


def test_models_that_are_none(tmp_path: Path) -> None:
    task = load_task(_task(tmp_path, head=_head(tmp_path)))
    with pytest.raises(MissingModelError, match="there is no model folder"):
        evaluate(tmp_path / "nothing", [task])
    with pytest.raises(MissingModelError, match=r"has no config.json"):
        evaluate(tmp_path, [task])
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is not a JSON object"):
        evaluate(tmp_path, [task])


def test_scores_must_be_finite() -> None:
    from plait.evaluation import Scores

    with pytest.raises(EvaluationError, match="the score of example 1 is nan"):
        Scores.of("t", "accuracy", [1.0, float("nan")])
    with pytest.raises(EvaluationError, match="gave no scores"):
        Scores.of("t", "accuracy", [])
