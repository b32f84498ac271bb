"""Functions, shell commands and lm-eval as tasks."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from plait.errors import EvaluationError, TaskError
from plait.evaluation import Candidate, FunctionTask, Task, evaluate, load_task, read_lm_eval
from tiny_testbeds import WORDS, write_task


def test_a_function_is_a_task(encoder: Path) -> None:
    def size(model: Path, split: str) -> list[float]:
        return [float((model / "config.json").stat().st_size), len(split)]

    task = FunctionTask("size", size, metric="bytes", higher_is_better=False)
    assert isinstance(task, Task)
    found = evaluate(encoder, [task])["size"]
    assert found.values[1] == 4.0 and found.metric == "bytes" and not found.higher_is_better
    assert task.identity("test") != FunctionTask("size", size, metric="bytes", version="2").identity("test")
    with pytest.raises(EvaluationError, match="gave no scores"):
        evaluate(encoder, [FunctionTask("none", lambda model, split: None)])


def _file(folder: Path, **content: Any) -> Path:
    return write_task(folder / "task", {}, **content)


def test_a_function_by_name(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scorer.py").write_text("def score(model, split):\n    return [1, 0, 1]\n")
    monkeypatch.syspath_prepend(tmp_path)
    task = load_task(_file(tmp_path, kind="callable", callable="my_scorer:score", metric="mine"))
    assert evaluate(encoder, [task])["task"].value == pytest.approx(2 / 3)
    before = task.identity("test")
    (tmp_path / "my_scorer.py").write_text("def score(model, split):\n    return [1, 1, 1]\n")
    assert load_task(tmp_path / "task").identity("test") != before


SCRIPT = """
import json, sys
from pathlib import Path
config = json.loads((Path(sys.argv[1]) / "config.json").read_text())
print("noise")
print(json.dumps({"scores": [config["hidden_size"], 3], "weights": [1, 3], "metric": sys.argv[2]}))
"""


def test_a_command_is_a_task(encoder: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} score.py {{model}} {{split}}"
    path = _file(tmp_path, kind="command", command=command, higher_is_better=False)
    (path.parent / "score.py").write_text(SCRIPT)
    task = load_task(path)
    found = evaluate(encoder, [task], "validation")["task"]
    assert found.value == (16 + 9) / 4 and found.metric == "validation" and not found.higher_is_better
    before = task.identity("test")
    (path.parent / "score.py").write_text(SCRIPT + "\n")
    assert load_task(path).identity("test") != before


def test_a_model_whose_name_is_a_command_runs_nothing(encoder: Path, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(encoder, tmp_path / "x; touch hacked;")
    path = _file(tmp_path, kind="command", command="test -d {model} && echo '[1]'")
    assert evaluate(model, [load_task(path)])["task"].value == 1
    assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo wrong >&2; exit 3 {model}", "failed with exit code 3:\nwrong"),
        ("true {model}", "printed no JSON on its last line: 'nothing'"),
        ("echo hello {model}", "printed no JSON on its last line: 'hello"),
        ("echo '[null]' # {model}", "gave no scores"),
        ("echo '[NaN]' # {model}", "the score of example 0 is nan"),
    ],
)
def test_commands_that_fail(command: str, message: str, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(encoder, [load_task(_file(tmp_path, kind="command", command=command))])


def _write_results(folder: Path, stamp: str = "_2026-01-02T03-04-05.678") -> None:
    """What lm-eval 0.4.13 writes, cut down to what is read."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "results": {"arc": {"alias": "arc", "acc,none": 0.5}, "gsm": {"exact_match,strict-match": 0.5}, "group": {}},
        "higher_is_better": {"arc": {"acc": True, "acc_norm": True}, "gsm": {"exact_match": True}},
    }
    (folder / f"results{stamp}.json").write_text(json.dumps(results))
    arc = [
        {"doc_id": i, "filter": "none", "metrics": ["acc", "acc_norm"], "acc": float(i % 2), "acc_norm": 1.0}
        for i in (1, 0, 3, 2)
    ]
    gsm = [
        {"doc_id": i, "filter": name, "metrics": ["exact_match"], "exact_match": float(name == "flexible-extract")}
        for i in range(3)
        for name in ("strict-match", "flexible-extract")
    ]
    for name, rows in (("arc", arc), ("gsm", gsm)):
        (folder / f"samples_{name}{stamp}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_results_of_lm_eval_are_read(tmp_path: Path) -> None:
    _write_results(tmp_path / "org__model")
    found = read_lm_eval(tmp_path)
    assert found["arc"].values.tolist() == [0, 1, 0, 1] and found["arc"].metric == "acc"
    assert found["gsm"].value == 0.0
    assert list(found) == ["arc", "gsm"]
    with pytest.raises(EvaluationError, match=r"line 1: no number for the metric 'f1'"):
        read_lm_eval(tmp_path, "f1")
    with pytest.raises(EvaluationError, match="holds no results"):
        read_lm_eval(tmp_path / "org__model" / "nothing")
    for samples in tmp_path.rglob("samples*"):
        samples.unlink()
    with pytest.raises(EvaluationError, match="run lm-eval with --log_samples"):
        read_lm_eval(tmp_path)


def _task_of_the_harness(folder: Path) -> Path:
    rows = [{"q": " ".join(WORDS[i : i + 3]), "choices": ["w1", "w3", "w9"], "gold": i % 3} for i in range(9)]
    path = _file(
        folder,
        kind="lm_eval",
        tasks=["tiny_choice"],
        metric="acc_norm",
        arguments=["--include_path", ".", "--device", "cpu"],
    )
    (path.parent / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        "task: tiny_choice",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {path.parent / 'data.jsonl'}}}}}",
        "output_type: multiple_choice",
        "test_split: test",
        'doc_to_text: "{{q}}"',
        'doc_to_choice: "{{choices}}"',
        'doc_to_target: "{{gold}}"',
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, "
        "{metric: acc_norm, aggregation: mean, higher_is_better: true}]",
    ]
    (path.parent / "tiny.yaml").write_text("\n".join(lines))
    return path


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_the_harness_itself(decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    found = evaluate(decoder, [load_task(_task_of_the_harness(tmp_path))])["task"]
    assert len(found.values) == 9 and found.metric == "acc_norm" and set(found.values) <= {0.0, 1.0}


def test_the_harness_in_another_environment(decoder: Path, tmp_path: Path) -> None:
    """Everything around the harness: a stand-in for its Python writes what it would."""
    _write_results(tmp_path / "made")
    other = tmp_path / "python"
    other.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "$@" > {tmp_path}/said\n'
        f'while [ "$1" != --output_path ]; do shift; done\ncp -r {tmp_path}/made "$2"\n'
    )
    other.chmod(0o755)
    path = _file(
        tmp_path, kind="lm_eval", tasks=["arc"], python=str(other), arguments=["--num_fewshot", "5"], metric="acc"
    )
    results = tmp_path / "made" / "results_2026-01-02T03-04-05.678.json"
    results.write_text(json.dumps({"results": {"arc": {}}, "higher_is_better": {"arc": {"acc": True}}}))
    found = evaluate(decoder, [load_task(path, limit=4)])["task"]
    assert found.values.tolist() == [0, 1, 0, 1]
    said = (tmp_path / "said").read_text()
    assert f"pretrained={decoder.resolve()},dtype=float32 --tasks arc" in said
    assert said.strip().endswith("--log_samples --limit 4 --num_fewshot 5")
    with pytest.raises(TaskError, match="scored as 'test' only"):
        evaluate(decoder, [load_task(path)], "validation")
    other.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 1\n')
    with pytest.raises(TaskError, match="has no lm-eval"):
        load_task(path).check(Candidate(decoder), "test")
