import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench_recipes import TINY_ENCODER, needs_encoder
from plait.bench.testbeds import _encoders, build, built
from plait.errors import MissingModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = tmp_path_factory.mktemp("cache")
    yield build("encoder", "tiny", 0, cache, lambda _: None, TINY_ENCODER)
    shutil.rmtree(cache)


@needs_encoder
def test_experts_are_ordinary_folders_with_the_bases_tensors(folder: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    base = load_file(folder / "base/model.safetensors")
    for task in TINY_ENCODER.tasks:
        path = folder / "experts" / task
        expert = load_file(path / "model.safetensors")
        assert {k: v.shape for k, v in expert.items()} == {k: v.shape for k, v in base.items()}
        changed = {name for name, tensor in expert.items() if not tensor.equal(base[name])}
        # A key's bias moves every score of a row alike, so softmax gives it no gradient but rounding.
        assert all(name.startswith("encoder.") for name in changed) and len(changed) >= 6 * 15
        assert {file.name for file in path.iterdir()} == {file.name for file in (folder / "base").iterdir()}
        AutoModel.from_pretrained(path)
        AutoTokenizer.from_pretrained(path)
        head = load_file(folder / f"heads/{task}.safetensors")
        labels = json.loads((folder / f"tasks/{task}/task.json").read_text())["labels"]
        assert head["weight"].shape == (len(labels), 384) and head["bias"].shape == (len(labels),)


@needs_encoder
def test_the_manifest_names_what_is_there(folder: Path) -> None:
    manifest = json.loads((folder / "testbed.json").read_text())
    assert (manifest["format"], manifest["name"], manifest["size"], manifest["seed"]) == (1, "encoder", "tiny", 0)
    assert manifest["cost"]["cpu_seconds"] > 0
    assert set(manifest["probes"]) == set(manifest["experts"]) == set(manifest["tasks"]) == set(TINY_ENCODER.tasks)
    for task, expert in manifest["experts"].items():
        assert (folder / expert["model"] / "config.json").is_file()
        assert (folder / expert["adapter"] / "adapter_config.json").is_file()
        about = json.loads((folder / manifest["tasks"][task]).read_text())
        assert about["name"] == task
        for split in about["splits"].values():
            rows = [json.loads(line) for line in (folder / "tasks" / task / split).read_text().splitlines()]
            assert 0 < len(rows) <= 60 and all(0 <= row["label"] < len(about["labels"]) for row in rows)
        assert (folder / "tasks" / task / about["head"]).resolve().is_file()
    assert not list(folder.rglob(".*"))
    assert [entry["folder"] for entry in built(folder.parent)] == [str(folder)]
    assert "babel" in (folder / "README.md").read_text()


@needs_encoder
def test_an_adapter_is_what_was_trained(folder: Path) -> None:
    """W + α/r · BA, written out, gives the features of the adapted model; at the start it is the base's."""
    import torch
    from safetensors.torch import load_file

    from plait.bench._lora import add_adapters
    from plait.bench._model import load_model

    config = json.loads((folder / "adapters/syllables/adapter_config.json").read_text())
    stored = load_file(folder / "adapters/syllables/adapter_model.safetensors")
    assert len(stored) == 2 * 6 * 6 and any(tensor.any() for name, tensor in stored.items() if "lora_B" in name)
    adapted, dense = load_model(folder / "base"), load_model(folder / "base")
    add_adapters(adapted, config["target_modules"], rank=16, alpha=32.0, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[101, 2023, 102]])
    with torch.no_grad():
        before = dense(input_ids=tokens).last_hidden_state
        torch.testing.assert_close(adapted(input_ids=tokens).last_hidden_state, before)
        for name, value in stored.items():
            layer, _, part = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
            getattr(adapted.get_submodule(layer), part).copy_(value)
        for layer in {name.rsplit(".", 2)[0].removeprefix("base_model.model.") for name in stored}:
            a, b = (stored[f"base_model.model.{layer}.{part}.weight"] for part in ("lora_A", "lora_B"))
            dense.get_submodule(layer).weight += config["lora_alpha"] / config["r"] * b @ a
        after = dense(input_ids=tokens).last_hidden_state
        assert not torch.allclose(before, after)
        torch.testing.assert_close(adapted(input_ids=tokens).last_hidden_state, after, atol=1e-5, rtol=1e-4)


@needs_encoder
def test_a_build_that_was_killed_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    draft = tmp_path / f".{folder.name}.draft"
    shutil.copytree(folder, draft)
    for gone in ("experts/syllables", "adapters/syllables"):
        shutil.rmtree(draft / gone)
    for gone in ("testbed.json", "README.md", "probes.json"):
        (draft / gone).unlink()
    (draft / "experts" / ".syllables.killed").mkdir()
    lines: list[str] = []
    again = build("encoder", "tiny", 0, tmp_path, lines.append, TINY_ENCODER)
    assert [line.split(":")[0] for line in lines if "training" in line] == [
        "training expert syllables",
        "training adapter syllables",
    ]
    for place in ("experts/syllables/model.safetensors", "adapters/syllables/adapter_model.safetensors", "probes.json"):
        assert (again / place).read_bytes() == (folder / place).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert not list(again.rglob(".*"))


@needs_encoder
def test_a_second_build_makes_nothing_and_another_seed_is_another_testbed(folder: Path) -> None:
    assert build("encoder", "tiny", 0, folder.parent, pytest.fail, TINY_ENCODER) == folder
    limited = replace(TINY_ENCODER, tasks={"syllables": _encoders.Schedule(1, 4)}, adapters=False)
    other = build("encoder", "tiny", 1, folder.parent, lambda _: None, limited)
    assert other.name.startswith("encoder-tiny-seed1-") and other != folder
    assert json.loads((other / "testbed.json").read_text())["experts"] == {
        "syllables": {"model": "experts/syllables", "base": "base"}
    }


def test_a_missing_encoder_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_encoders, "_PACKAGE", "no_such_package")
    with pytest.raises(MissingModelError, match=r"plait\[bench\]"):
        build("encoder", cache=tmp_path)
    assert not list(tmp_path.iterdir())
