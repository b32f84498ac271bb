import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench_recipes import TINY_VISION, needs_fonts
from plait.bench._glyphs import distort, draw, find_fonts, split_fonts
from plait.bench.testbeds import build, vision
from plait.errors import MissingModelError

pytestmark = needs_fonts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = tmp_path_factory.mktemp("cache")
    yield build("vision", "tiny", 0, cache, lambda _: None, TINY_VISION)
    shutil.rmtree(cache)


def test_two_bases_and_their_experts_are_there(folder: Path) -> None:
    from safetensors.torch import load_file

    manifest = json.loads((folder / "testbed.json").read_text())
    assert manifest["bases"] == {"base": "base", "base_b": "base_b"}
    assert {name: expert["base"] for name, expert in manifest["experts"].items()} == {
        "digits": "base",
        "orientation": "base",
        "digits_b": "base_b",
    }
    states = {base: load_file(folder / base / "model.safetensors") for base in manifest["bases"]}
    assert not states["base"]["layers.0.attention.q_proj.weight"].equal(
        states["base_b"]["layers.0.attention.q_proj.weight"]
    )
    for name, expert in manifest["experts"].items():
        state = load_file(folder / expert["model"] / "model.safetensors")
        base = states[expert["base"]]
        assert state.keys() == base.keys()
        changed = {key for key in state if not state[key].equal(base[key])}
        assert changed and all(key.startswith("layers.") for key in changed)
        about = json.loads((folder / manifest["tasks"][name]).read_text())
        assert about["kind"] == "image_classification" and about["name"] == name
        head = load_file(folder / "tasks" / name / about["head"])
        assert head["weight"].shape == (len(about["labels"]), 24)
        for split, size in zip(("train", "validation", "test"), TINY_VISION.sizes, strict=True):
            data = load_file(folder / "tasks" / name / about["splits"][split])
            assert data["images"].shape == (size, 28, 28) and data["images"].dtype == torch.uint8
            assert set(data["labels"].tolist()) == set(range(len(about["labels"])))


def test_the_images_of_a_second_base_are_the_same(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        files = [folder / f"tasks/{name}/{split}.safetensors" for name in ("digits", "digits_b")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_splits_share_no_family_and_each_has_what_is_wanted() -> None:
    wanted = [0x3B1, 0x430]
    splits = split_fonts(find_fonts(TINY_VISION.packages), wanted)
    families = [{font.family for font in fonts} for fonts in splits.values()]
    assert sum(map(len, families)) == len(set.union(*families))
    fonts = [font for part in splits.values() for font in part]
    assert len(fonts) == len(find_fonts(TINY_VISION.packages))
    assert all(any(set(wanted) <= font.characters for font in part) for part in splits.values())


def test_pretraining_shows_no_character_of_a_task() -> None:
    shown = {code for script in vision._SCRIPTS.values() for code in script}
    assert not shown & {code for _, codes in vision._TASKS.values() for code in codes}


def test_glyphs_are_drawn_in_the_middle_and_turned() -> None:
    fonts = [font for font in find_fonts(TINY_VISION.packages) if font.path.name == "DejaVuSans.ttf"]
    ((_, code, glyph),) = draw(fonts, [ord("L")])
    assert code == ord("L") and glyph.shape == (48, 48) and glyph.max() > 200
    rows, columns = glyph.nonzero().float().mean(0).tolist()
    assert 18 < rows < 32 and 14 < columns < 30
    still = [
        distort(torch.stack([glyph]), torch.Generator().manual_seed(3), torch.tensor([turn]))[0].float()
        for turn in range(4)
    ]
    low = [image[14:].sum() - image[:14].sum() for image in still]  # the foot of the L is below, then it is not
    assert low[0] > 0 > low[2]


def test_missing_fonts_are_named_with_the_remedy(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(MissingModelError, match=r"no-such-fonts .*plait\[vision\]"):
        build("vision", cache=tmp_path, recipe=replace(TINY_VISION, packages=("no_such_fonts",)))
    assert not list(tmp_path.iterdir())
