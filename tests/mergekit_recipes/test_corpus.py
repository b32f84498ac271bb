"""Every recipe of the corpus, merged as it is and through its import, against a reference written for these tests."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import plait
from alignment.speakers import family
from mergekit_recipes.reference import State, merge
from models import CONFIG, llama, save
from plait.engine import Options, compile_recipe, execute_in_memory
from plait.recipes import load_recipe, recipe_yaml

CORPUS = sorted((Path(__file__).parent.parent / "data" / "mergekit").glob("*.yml"))
LAYERS = 4


def near(base: State, seed: int, size: float = 0.1) -> State:
    """A fine-tune: the base and a change of every entry."""
    step = llama(seed, layers=LAYERS)
    return {k: v + size * (step[k] - step[k].mean()) for k, v in base.items()}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the corpus' names are relative to."""
    home = tmp_path_factory.mktemp("mergekit")
    base = llama(0, layers=LAYERS)
    states = {"base": base, "alpha": near(base, 1), "beta": near(base, 2), "gamma": near(base, 3)}
    states["far"] = llama(4, layers=LAYERS)
    for name, seed, limit in (("sparse", 5, 0.01), ("sparser", 6, 0.02)):
        found = near(base, seed)
        states[name] = {k: torch.where((v - base[k]).abs() > limit, v, base[k]) for k, v in found.items()}
    for name in ("base", "alpha", "beta"):
        states[f"half-{name}"] = {k: v.bfloat16() for k, v in states[name].items()}
    for name, state in states.items():
        save(home / name, state, num_hidden_layers=LAYERS)
    for name in ("alpha", "beta"):
        tied = {k: v for k, v in states[name].items() if k != "lm_head.weight"}
        save(home / f"tied-{name}", tied, {**CONFIG, "tie_word_embeddings": True}, num_hidden_layers=LAYERS)
    for name, state in family(home / "speaks").items():
        (home / "speaks" / name).rename(home / f"speaks-{name}")
        del state
    write_adapter(home / "lora", base)
    return home


def write_adapter(folder: Path, base: State) -> None:
    """A LoRA of rank 4 and scale 2 on two kinds of matrices."""
    rng = torch.Generator().manual_seed(7)
    low: State = {}
    for name in (n for n in base if n.endswith(("q_proj.weight", "down_proj.weight"))):
        key = f"base_model.model.{name.removesuffix('.weight')}"
        low[f"{key}.lora_A.weight"] = 0.1 * torch.randn(4, base[name].shape[1], generator=rng)
        low[f"{key}.lora_B.weight"] = 0.1 * torch.randn(base[name].shape[0], 4, generator=rng)
    folder.mkdir()
    save_file(low, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture
def here(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand in the folder of the models, as mergekit's users do."""
    monkeypatch.chdir(models)
    yield models


def uniform(tensor: str, expert: str) -> Tensor:
    """Numbers that both sides use for random masks."""
    rng = torch.Generator().manual_seed(zlib.crc32(f"{tensor} {expert}".encode()))
    shape = llama(0, layers=LAYERS)[tensor].shape
    return torch.rand(shape, generator=rng)


def run(recipe: Path) -> State:
    """Merge in memory, with the masks of these tests."""
    return execute_in_memory(compile_recipe(recipe), Options(threads=1, replay=uniform))


def close(ours: State, theirs: State, base: State) -> None:
    """Updates agree to rounding; up to 0.1 % of entries may stand at a threshold."""
    assert set(ours) == set(theirs)
    for name, wanted in theirs.items():
        found = ours[name]
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
        step = torch.finfo(wanted.dtype).eps * wanted.double().abs()  # one unit in the last place, of either side
        off = (found.double() - wanted.double()).abs()
        known = name in base and base[name].shape == wanted.shape
        size = (wanted.double() - base[name].double()).abs().max() if known else wanted.double().abs().max()
        share = float((off > step + 1e-5 * size).double().mean())
        assert share <= 1e-3, f"{name}: {share:.2%} of the entries differ, the worst by {float(off.max()):g}"


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_a_recipe_means_what_mergekit_makes_of_it(path: Path, here: Path, tmp_path: Path) -> None:
    ours = run(path)
    close(ours, merge(path.read_text(), here, uniform), llama(0, layers=LAYERS))
    imported = plait.import_mergekit(path, relative_to=tmp_path)
    copy = tmp_path / "recipe.yaml"
    copy.write_text(recipe_yaml(imported, path.name))
    again = run(copy)
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert load_recipe(path).notes == imported.notes


def test_the_corpus_covers_every_method() -> None:
    from plait.recipes.mergekit import TRANSLATIONS

    used = {load_recipe(path).document.source and word for path in CORPUS for word in _methods(path.read_text())}
    assert used == set(TRANSLATIONS)
    assert len(CORPUS) >= 40


def _methods(text: str) -> list[str]:
    return [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("merge_method:")]
