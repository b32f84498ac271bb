"""Studies on tiny testbeds: what is chosen where, what is kept, what a failure costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plait
from plait.bench import read_testbed, score_model
from plait.bench.studies import StudyConfig, bench, markdown_table, study_of
from plait.errors import EvaluationError, TaskError
from plait.evaluation import evaluate

METHODS: list[Any] = ["linear", {"name": "task_arithmetic", "grid": {"lambda": [0.3, 0.5, 0.7]}, "extend": 0}]


def _config(testbeds: list[Path], **changes: Any) -> StudyConfig:
    arms = {folder.name: {"testbed": str(folder)} for folder in testbeds}
    content = {"arms": arms, "methods": METHODS, "bootstrap": 50, "landscape": 0, **changes}
    return StudyConfig.model_validate(content)


def _quiet(line: str) -> None:
    del line


def _bench(config: StudyConfig, out: Path, **options: Any) -> dict[str, Any]:
    return bench(config, out, **{"html": False, "report": _quiet, **options})[0]


def test_settings_are_chosen_on_validation_and_reported_on_test(testbeds: list[Path], tmp_path: Path) -> None:
    results = _bench(_config(testbeds[:1]), tmp_path / "out")
    run = next(run for run in results["runs"] if run["method"] == "task_arithmetic")
    figures = {trial["setting"]["lambda"]: trial["figure"] for trial in run["trials"]}
    assert run["setting"]["lambda"] == max(figures, key=lambda value: figures[value])
    bed = read_testbed(testbeds[0])
    model = tmp_path / "model"
    plait.merge(run["recipe"], model)
    tasks = list(bed.tasks.values())
    test, validation = evaluate(model, tasks, "test"), evaluate(model, tasks, "validation")
    assert {name: run["tasks"][name]["value"] for name in test} == {name: s.value for name, s in test.items()}
    chosen = next(trial for trial in run["trials"] if trial["setting"] == run["setting"])
    assert chosen["tasks"] == {name: s.value for name, s in validation.items()}
    own = {name: evaluate(bed.experts[name], [bed.tasks[name]])[name].value for name in bed.experts}
    expected = np.mean([test[name].value / own[name] for name in own])
    assert run["figures"]["normalised"]["value"] == pytest.approx(expected)
    assert next(r for r in results["runs"] if r["method"] == "linear")["trials"] == []


def test_the_same_study_gives_the_same_results_to_the_last_digit(testbeds: list[Path], tmp_path: Path) -> None:
    config = _config(testbeds)
    for name in ("one", "two"):
        _bench(config, tmp_path / name)
    for file in ("results.json", "table.csv", "table.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert {row["method"] for row in json.loads((tmp_path / "one" / "costs.json").read_text())} == {
        "linear",
        "task_arithmetic",
    }


def test_a_run_that_is_killed_goes_on_where_it_was(testbeds: list[Path], tmp_path: Path) -> None:
    config, merges = _config(testbeds[:1]), []

    class Killed(BaseException):
        pass

    def merge(recipe: Mapping[str, Any], out: Path) -> None:
        merges.append(json.dumps(recipe))
        if len(merges) == 3:
            out.mkdir()
            (out / "half").write_text("")
            raise Killed
        plait.merge(recipe, out)

    with pytest.raises(Killed):
        _bench(config, tmp_path / "out", merge=merge)
    assert not list((tmp_path / "out" / "work").iterdir())
    results = _bench(config, tmp_path / "out", merge=merge)
    # linear, three settings, the best one again on test; the third merge was lost and is made anew
    assert len(merges) == 6 and len(set(merges)) == 4 and merges[2] == merges[3]
    merges.clear()
    assert _bench(config, tmp_path / "out", merge=merge) == results and not merges
    assert _bench(config, tmp_path / "whole") == results


def test_what_a_killed_process_left_is_removed(testbeds: list[Path], tmp_path: Path) -> None:
    left = tmp_path / "out" / "work" / ("a" * 24 + "-999999999")
    left.mkdir(parents=True)
    lock = left.parent / f".{left.name}.plait-lock"
    lock.write_text("")
    other = left.parent / "something of yours"
    other.mkdir()
    _bench(_config(testbeds[:1], methods=["linear"]), tmp_path / "out")
    assert not left.exists() and not lock.exists() and other.exists()


def test_a_method_that_raises_is_a_row(testbeds: list[Path], tmp_path: Path) -> None:
    def merge(recipe: Mapping[str, Any], out: Path) -> None:
        if recipe["method"] == "ties":
            raise ZeroDivisionError("by zero")
        plait.merge(recipe, out)

    config = _config(testbeds[:1], methods=["ties", "linear", {"name": "slerp", "method": "slerp"}])
    results = _bench(config, tmp_path / "out", merge=merge)
    rows = {row["method"]: row for row in results["table"]}
    assert rows["ties"]["error"] == "ZeroDivisionError: by zero" and not rows["ties"]["figures"]
    assert results["table"][0]["method"] in ("linear", "slerp") and rows["ties"]["rank"] == 3
    assert "ZeroDivisionError: by zero" in markdown_table(results)
    again = _bench(config, tmp_path / "out")  # a failure is tried again
    assert not {row["method"]: row for row in again["table"]}["ties"]["error"]


def test_a_full_disk_ends_the_run(testbeds: list[Path], tmp_path: Path) -> None:
    from plait.errors import DiskSpaceError

    def merge(recipe: Mapping[str, Any], out: Path) -> None:
        raise DiskSpaceError("no room")

    with pytest.raises(DiskSpaceError):
        _bench(_config(testbeds[:1]), tmp_path / "out", merge=merge)


def test_a_merge_that_gives_another_model_is_noticed(testbeds: list[Path], tmp_path: Path) -> None:
    calls: list[int] = []

    def merge(recipe: Mapping[str, Any], out: Path) -> None:
        calls.append(1)
        plait.merge({**recipe, "parameters": {"lambda": 0.01 * len(calls)}}, out)

    with pytest.raises(EvaluationError, match="gave another model than before"):
        _bench(_config(testbeds[:1], methods=METHODS[1:]), tmp_path / "out", merge=merge)


def test_nothing_is_merged_before_everything_is_checked(testbeds: list[Path], tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(testbeds[0], tmp_path / "copy")
    (copy / "tasks" / "colours" / "validation.jsonl").write_text("")

    def merge(recipe: Mapping[str, Any], out: Path) -> None:
        raise AssertionError

    with pytest.raises(TaskError, match=r"validation\.jsonl is empty"):
        _bench(_config([copy]), tmp_path / "out", merge=merge)


def test_seeds_are_averaged_and_shown(testbeds: list[Path], tmp_path: Path) -> None:
    arms = {"tiny": {"testbed": str(testbeds[0])}}
    first = _bench(_config(testbeds[:1], arms=arms), tmp_path / "one")
    both = _bench(_config(testbeds), tmp_path / "two")
    assert len(both["pools"]) == 2 and len(both["table"]) == 4
    value = next(r for r in first["table"] if r["method"] == "linear")["figures"]["normalised"]
    assert (
        value
        == next(r for r in both["table"] if r["method"] == "linear" and r["arm"] == "tiny0")["figures"]["normalised"]
    )
    assert value["low"] <= value["value"] <= value["high"]


def test_a_grid_is_continued_while_its_end_is_the_best(testbeds: list[Path], tmp_path: Path) -> None:
    method = {"name": "task_arithmetic", "grid": {"lambda": [0.02, 0.03]}, "extend": 3}
    run = _bench(_config(testbeds[:1], methods=[method]), tmp_path / "out")["runs"][0]
    tried = [trial["setting"]["lambda"] for trial in run["trials"]]
    assert tried[:2] == [0.02, 0.03] and 2 <= len(tried) <= 5
    best = max(range(2), key=lambda i: run["trials"][i]["figure"])
    if best == 1:
        assert tried[2] == 0.04
    else:
        assert tried[2] == 0.01


def test_subsets_beat_the_base_and_the_best_expert_or_not(testbeds: list[Path], tmp_path: Path) -> None:
    config = _config(testbeds[:1], subsets={"sizes": [2], "per_size": 5}, choose_by="raw", rank_by="over_best")
    results = _bench(config, tmp_path / "out")
    run = next(run for run in results["runs"] if run["method"] == "linear")
    assert sorted(run["subset"]) == ["animals", "colours"]
    pool = results["pools"][0]
    merged = np.mean([run["tasks"][name]["value"] for name in ("animals", "colours")])
    alone = [np.mean(list(pool["alone"][name].values())) for name in ("animals", "colours")]
    base = np.mean([pool["base"][name]["value"] for name in ("animals", "colours")])
    assert run["figures"]["over_best"]["value"] == pytest.approx(merged - max(alone))
    assert run["figures"]["beats_base"]["value"] == float(merged > base)
    assert results["table"][0]["ranked_by"] == "over_best"


def test_experts_of_one_task_are_scored_on_it_once(testbeds: list[Path], tmp_path: Path) -> None:
    home = tmp_path / "bed"
    shutil.copytree(testbeds[0], home)
    shutil.copytree(home / "experts/colours", home / "experts/twin")  # of the task of the animals, and bad at it
    manifest = json.loads((home / "testbed.json").read_text())
    manifest["experts"]["twin"] = {"model": "experts/twin", "base": "base"}
    manifest["tasks"]["twin"] = manifest["tasks"]["animals"]
    (home / "testbed.json").write_text(json.dumps(manifest))
    results = _bench(_config([home], methods=["linear"], landscape=5, limit={"validation": 32}), tmp_path / "out")
    pool, run = results["pools"][0], results["runs"][0]
    assert pool["experts"] == ["animals", "colours", "twin"] == run["subset"]
    assert pool["tasks"] == {"animals": "animals", "colours": "colours", "twin": "animals"}
    assert set(run["tasks"]) == {"animals", "colours", "pairs"} == set(pool["base"])
    bed = read_testbed(home)
    twin = evaluate(bed.experts["twin"], [bed.tasks["twin"]], "test")["animals"].value
    assert pool["each"]["twin"]["value"] == twin != pool["own"]["animals"]["value"] == pool["each"]["animals"]["value"]
    shares = [run["tasks"][name]["value"] / pool["own"][name]["value"] for name in ("animals", "colours")]
    assert run["figures"]["normalised"]["value"] == pytest.approx(np.mean(shares))
    assert results["landscape"]["experts"] == ["animals", "colours"]
    table = score_model(bed.experts["twin"], [home])
    assert [row.task for row in table.rows] == ["animals", "colours", "pairs"]
    assert table.rows[0].expert == pool["own"]["animals"]["value"] and table.rows[0].interval.value == twin


def test_the_loss_plane_passes_through_the_models(testbeds: list[Path], tmp_path: Path) -> None:
    results = _bench(_config(testbeds[:1], methods=["linear"], landscape=5, limit={"validation": 64}), tmp_path / "out")
    plane = results["landscape"]
    bed = read_testbed(testbeds[0])
    tasks = [task.measuring("cross_entropy").limited(64) for task in bed.tasks.values()]
    point = next(p for p in plane["points"] if (p["a"], p["b"]) == (1.0, 0.0))
    wanted = evaluate(bed.experts["animals"], tasks, "validation")
    assert point["losses"]["animals"] == pytest.approx(wanted["animals"].value, rel=1e-6)
    assert [line["name"] for line in plane["lines"]] == ["base → animals", "base → colours", "animals → colours"]
    ends = [p for p in plane["lines"][2]["points"] if (p["a"], p["b"]) in ((1.0, 0.0), (0.0, 1.0))]
    assert len(ends) == 2 and plane["lines"][2]["t"] == [-0.5, 0.0, 0.5, 1.0, 1.5]
    layers = results["layers"]
    assert layers["layers"] == ["0", "1"] and len(layers["conflict"]["animals ~ colours"]) == 2
    assert all(0.3 < value < 0.7 for value in layers["conflict"]["animals ~ colours"])  # independent random steps


def test_a_target_is_a_folder_a_file_or_a_name(testbeds: list[Path], tmp_path: Path) -> None:
    config, _ = study_of(testbeds[0])
    assert config.arms["tiny0"].testbed == str(testbeds[0].resolve())
    config, _ = study_of("encoder", size="full", seeds=[3, 4])
    assert config.arms["encoder"].size == "full" and config.seeds == [3, 4]
    file = tmp_path / "study.yaml"
    file.write_text(f"arms:\n  a: {{testbed: {testbeds[0]}}}\nmethods: [linear]\n")
    config, home = study_of(file)
    assert home == tmp_path and config.methods == ["linear"]
