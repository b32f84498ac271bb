import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from bench_recipes import TINY_ENCODER, needs_encoder
from plait.bench import demo
from plait.bench._merges import demo_merges
from plait.bench._testbed import Testbed
from plait.bench.demo import reference_rows, run_merges, table
from plait.bench.testbeds import build
from plait.evaluation import FileTask

pytestmark = needs_encoder


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    cache = tmp_path_factory.mktemp("cache")
    yield Testbed(build("encoder", "tiny", 0, cache, lambda _: None, TINY_ENCODER))
    shutil.rmtree(cache)


def test_scores_are_fractions_and_are_kept(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = testbed.evaluate(testbed.base)
    assert set(scores) == set(TINY_ENCODER.tasks) and all(0 <= score <= 1 for score in scores.values())
    monkeypatch.setattr(FileTask, "score", pytest.fail)
    assert testbed.evaluate(testbed.base) == scores


def test_the_table_has_a_row_for_every_merge_and_shows_errors(testbed: Testbed) -> None:
    from rich.console import Console

    def merge(recipe: dict[str, Any], out: Path) -> None:
        if recipe["method"] == "ties":
            raise ValueError("no [bold] today")
        source = recipe.get("base") or recipe["slices"][0]["model"]
        shutil.copytree(source, out, dirs_exist_ok=True)

    merges = demo_merges(testbed.base, testbed.experts)
    rows = list(run_merges(testbed, merges, merge))
    assert [row.label for row in rows] == [label for label, _ in merges]
    assert [row.error for row in rows if row.error] == ["ValueError: no [bold] today"]
    assert rows[0].scores == testbed.evaluate(testbed.base)
    text = StringIO()
    Console(file=text, width=200).print(table(testbed, [reference_rows(testbed), rows]))
    assert "no [bold] today" in text.getvalue() and "probes on" in text.getvalue()
    assert not (testbed.folder / "merges").exists()  # a testbed stays as it was made
    assert (testbed.work / "merges/linear/config.json").is_file()
    again = list(run_merges(testbed, merges[:1], merge, keep=False))
    assert again[0].scores == rows[0].scores and not (testbed.work / "merges/linear").exists()


def test_main_counts_the_merges_and_fails_with_one_of_them(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {name: str(path) for name, path in testbed.experts.items()}
    good, bad = ("linear", {"method": "linear", "experts": models}), ("none", {"method": "linaer", "experts": models})
    monkeypatch.setattr(demo, "build", lambda *_: testbed.folder)
    for merges, status in (([good], 0), ([good, bad], 1)):
        monkeypatch.setattr(demo, "demo_merges", lambda *_, merges=merges: merges)
        assert demo.main([]) == status
        out = capsys.readouterr().out
        assert f"merging {len(merges)} of {len(merges)}: {merges[-1][0]}\n" in out
        assert ("1 of 2 merges failed" in out) == bool(status) == ("linaer" in out)


def test_the_demo_needs_no_other_package_than_the_extra() -> None:
    assert find_spec("babel") and find_spec("pygments")
