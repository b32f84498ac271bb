"""`plait verify`: what is whole passes, each kind of damage is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import plait
from models import family, llama, save, save_family
from plait.cli import app
from plait.reports import Verification


def _states(found: Verification) -> dict[str, str]:
    return {step.name: step.state for step in found.steps}


def _sentence(found: Verification, name: str) -> str:
    return next(step.sentence for step in found.steps if step.name == name)


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    base, experts = family(2)
    plait.merge({"method": "task_arithmetic", **save_family(tmp_path, base, experts)}, tmp_path / "out")
    return tmp_path / "out"


def _edit(folder: Path, name: str, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    state[name] = change(state[name])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_merged_model_passes_and_runs(merged: Path) -> None:
    pytest.importorskip("transformers")
    found = plait.verify(merged, load=True)
    assert found.ok, found
    names = ["files", "hashes", "numbers", "vocabulary", "loads", "answers", "generates"]
    assert _states(found) == dict.fromkeys(names, "ok")
    assert "as LlamaForCausalLM" in _sentence(found, "loads")
    assert "[1, 8, 64] numbers, all finite" in _sentence(found, "answers")
    assert _sentence(found, "generates") == "8 tokens"


def test_a_changed_tensor_is_named(merged: Path) -> None:
    _edit(merged, "model.layers.1.mlp.up_proj.weight", lambda w: w + 1e-3)
    found = plait.verify(merged, load=False)
    assert _states(found)["hashes"] == "failed" and not found.ok
    assert "model.layers.1.mlp.up_proj.weight" in _sentence(found, "hashes")
    assert _states(found)["loads"] == "skipped"


def test_nan_is_named(merged: Path) -> None:
    _edit(merged, "model.norm.weight", lambda w: w * float("nan"))
    found = plait.verify(merged, load=False)
    assert _states(found)["numbers"] == "failed" and "model.norm.weight" in _sentence(found, "numbers")


def test_rows_that_do_not_fit_the_config_or_the_tokenizer(merged: Path) -> None:
    (merged / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 64}}}))
    found = plait.verify(merged, load=False)
    assert "uses number 64, the embedding has 64 rows" in _sentence(found, "vocabulary")
    config = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps({**config, "vocab_size": 70}))
    assert "states 70 tokens" in _sentence(plait.verify(merged, load=False), "vocabulary")


def test_what_transformers_refuses_or_misses_is_a_failure(merged: Path) -> None:
    pytest.importorskip("transformers")
    state = load_file(merged / "model.safetensors")
    del state["model.layers.2.mlp.down_proj.weight"]
    save_file(state, merged / "model.safetensors", metadata={"format": "pt"})
    found = plait.verify(merged, load=True)
    assert _states(found)["loads"] == "failed" and "model.layers.2.mlp.down_proj.weight" in _sentence(found, "loads")
    (merged / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    found = plait.verify(merged, load=True)
    assert _states(found)["loads"] == "failed" and "unheard-of" in _sentence(found, "loads")


def test_numbers_that_overflow_only_when_the_model_runs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    state = {k: v.half() for k, v in llama(0).items()}
    for i in range(3):
        state[f"model.layers.{i}.mlp.up_proj.weight"] *= 3e4
    folder = save(tmp_path / "m", state, torch_dtype="float16")
    found = plait.verify(folder, load=True)
    assert _states(found)["numbers"] == "ok" and _states(found)["hashes"] == "skipped"
    assert _states(found)["answers"] == "failed" and "not all finite" in _sentence(found, "answers")


def test_foreign_code_is_not_run(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((merged / "config.json").read_text())
    code = f"from pathlib import Path\nPath({str(merged / 'ran')!r}).touch()\n"
    (merged / "modeling_x.py").write_text(code)
    (merged / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling_x.X"}}))
    assert _states(plait.verify(merged))["loads"] == "skipped"
    assert not (merged / "ran").exists()


def test_a_model_that_does_not_fit_is_not_loaded(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("plait.reports._verify.available_memory", lambda: 1000)
    found = plait.verify(merged)
    assert found.ok and "--load tries" in _sentence(found, "loads")


def test_the_command(merged: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", str(merged), "--no-load"])
    assert result.exit_code == 0, result.output
    assert "✓ hashes: every tensor is what plait.json says" in result.stdout
    _edit(merged, "lm_head.weight", torch.neg)
    result = CliRunner().invoke(app, ["verify", str(merged), "--no-load", "--json"])
    assert result.exit_code == 1 and not json.loads(result.stdout)["ok"]
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "nowhere")])
    assert result.exit_code == 1 and "✗ files: " in result.stdout


def test_a_merge_can_be_tried_out_at_once(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    base, experts = family(2)
    recipe = {"method": "task_arithmetic", **save_family(tmp_path, base, experts), "parameters": {"lambda": 0.5}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    arguments = ["merge", str(tmp_path / "recipe.yaml"), "-q", "-o"]
    plain = CliRunner().invoke(app, [*arguments, str(tmp_path / "plain")])
    assert plain.exit_code == 0 and "loads" not in plain.stdout  # nobody watches
    tried = CliRunner().invoke(app, [*arguments, str(tmp_path / "tried"), "--verify"])
    assert tried.exit_code == 0 and "✓ loads: as LlamaForCausalLM" in tried.stdout
    for folder in (tmp_path / "base", *tmp_path.glob("expert*")):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    broken = CliRunner().invoke(app, [*arguments, str(tmp_path / "broken"), "--verify"])
    assert broken.exit_code == 1 and "✗ loads" in broken.stdout
    assert (tmp_path / "broken" / "model.safetensors").is_file()
