import json
from pathlib import Path

from bench_recipes import needs_encoder
from plait.bench._folder import read_testbed
from plait.bench._split import Example, digest
from plait.bench.testbeds import build
from plait.bench.testbeds._encoders import Recipe, Schedule
from plait.bench.testbeds.overlap import conflicting, overlapping

TRAIN = tuple(Example(text, i % 5) for i, text in enumerate(sorted((f"text {i}" for i in range(400)), key=digest)))


def test_half_of_the_overlapping_texts_are_in_the_first_half() -> None:
    part = list(overlapping(TRAIN))
    assert len(part) == 200 and len(set(part) & set(TRAIN[:200])) == 100


def test_a_share_of_the_conflicting_labels_is_the_next_one() -> None:
    part = list(conflicting(TRAIN, 5))
    assert [example.text for example in part] == [example.text for example in TRAIN]
    steps = [(new.label - old.label) % 5 for new, old in zip(part, TRAIN, strict=True)]
    assert set(steps) == {0, 1}
    for quarter in range(4):  # everywhere alike, though the texts are in the order of their hashes
        assert 45 < sum(steps[100 * quarter : 100 * (quarter + 1)]) < 75


@needs_encoder
def test_the_three_experts_of_a_task_share_its_head_and_its_test(tmp_path: Path) -> None:
    recipe = Recipe({"syllables": Schedule(3, 8)}, probe_texts=40, limits=(80, 40, 40))
    folder = build("overlap", "tiny", 0, tmp_path, lambda _: None, recipe)
    manifest = json.loads((folder / "testbed.json").read_text())
    names = ["syllables", "syllables_overlap", "syllables_conflict"]
    assert list(manifest["experts"]) == names
    assert [path.name for path in (folder / "heads").iterdir()] == ["syllables.safetensors"]
    assert manifest["tasks"] == dict.fromkeys(names, "tasks/syllables/task.json")
    task = json.loads((folder / "tasks/syllables/task.json").read_text())
    assert task["head"] == "../../heads/syllables.safetensors"
    assert list(task["splits"]) == ["train", "validation", "test", *(f"train_{name}" for name in names[1:])]
    training = [
        folder / "tasks/syllables" / task["splits"][f"train{end}"] for end in ("", *(f"_{n}" for n in names[1:]))
    ]
    assert len({path.read_bytes() for path in training}) == 3
    assert len({(folder / f"experts/{name}/model.safetensors").read_bytes() for name in names}) == 3
    bed = read_testbed(folder)
    assert list(bed.experts) == names and [task.name for task in bed.own_tasks] == ["syllables"]
