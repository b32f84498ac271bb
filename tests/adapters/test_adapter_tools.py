"""Extracting, converting, packing and starting adapters; the commands that do it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapter_files import base_of, change, lora, noise, save_lora, save_model
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

import plait
from models import read
from plait.adapters import (
    adapter_info,
    convert_adapter,
    extract_adapter,
    orthogonal_basis,
    overlap,
    pack_adapters,
    recover_adapter,
    start_adapter,
)
from plait.cli import app
from plait.errors import AdapterError, PlaitError, RecipeError

State = dict[str, Tensor]
SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    "model.layers.0.self_attn.q_proj.weight": (24, 16),
    "model.layers.0.mlp.down_proj.weight": (16, 30),
    "model.norm.weight": (16,),
    "lm_head.weight": (40, 16),
}
LINEAR = {"model.layers.0.self_attn.q_proj": (24, 16), "model.layers.0.mlp.down_proj": (16, 30)}


def models(home: Path, norms: bool = True) -> tuple[str, str, State, State]:
    base = base_of(SHAPES)
    model = {k: v + 0.02 * noise(*v.shape, seed=7 + i) for i, (k, v) in enumerate(base.items())}
    if not norms:
        model["model.norm.weight"] = base["model.norm.weight"]
    return str(save_model(home / "base", base)), str(save_model(home / "model", model)), base, model


def put_on(home: Path, base: str, adapter: Path) -> State:
    plait.merge({"method": "task_arithmetic", "base": base, "experts": [str(adapter)]}, home)
    return read(home)


@pytest.mark.parametrize("asked", [{"rank": 3}, {"energy": 0.9}, {"rank": 99}])
def test_what_is_extracted_gives_the_model_to_the_error_that_is_told(tmp_path: Path, asked: dict[str, float]) -> None:
    """Of each matrix, and of all together."""
    base, model, origin, wanted = models(tmp_path)
    found = extract_adapter(base, model, tmp_path / "a", **asked)  # type: ignore[arg-type]
    ours = put_on(tmp_path / "out", base, tmp_path / "a")
    assert set(found.left) == {"model.norm.weight"}
    missing = total = 0.0
    for name, weight in wanted.items():
        gap, size = float((ours[name] - weight).norm()), float((weight - origin[name]).norm())
        missing, total = missing + gap**2, total + size**2
        if name != "model.norm.weight":
            kept = found.kept[name.removesuffix(".weight")]
            assert gap / size == pytest.approx(kept.error, rel=1e-3, abs=2e-5)
            assert kept.rank <= asked.get("rank", 99)
            assert "energy" not in asked or kept.error**2 <= 0.1 + 1e-6
    assert (missing / total) ** 0.5 == pytest.approx(found.error, rel=1e-3, abs=2e-5)
    report = json.loads((tmp_path / "a" / "extraction.json").read_text())
    assert report["error"] == found.error and len(report["modules"]) == 4


def test_extraction_says_what_it_lacks(tmp_path: Path) -> None:
    """A rank or an energy; tensors that agree."""
    base, model, _, _ = models(tmp_path, norms=False)
    with pytest.raises(RecipeError, match="-r RANK"):
        extract_adapter(base, model, tmp_path / "a")
    found = extract_adapter(base, model, tmp_path / "a", rank=2, match="*_proj.weight")
    assert set(found.left) == {"model.embed_tokens.weight", "lm_head.weight"} and len(found.kept) == 2
    with pytest.raises(PlaitError, match="nothing is left"):
        extract_adapter(base, base, tmp_path / "b", rank=2)
    other = save_model(tmp_path / "other", base_of({**SHAPES, "lm_head.weight": (41, 16)}))
    with pytest.raises(PlaitError, match="cannot be aligned"):
        extract_adapter(base, str(other), tmp_path / "c", rank=2)


def test_conversion_keeps_the_changes(tmp_path: Path) -> None:
    """To other libraries' names and back, and to other ranks."""
    base = str(save_model(tmp_path / "base", base_of(SHAPES)))
    state = lora(LINEAR, rank=6)
    source = save_lora(tmp_path / "a", state, r=6, lora_alpha=9, task_type="CAUSAL_LM")
    wanted = {m: change(state, m, 1.5) for m in LINEAR}
    convert_adapter(str(source), tmp_path / "kohya", style="kohya", component="te")
    assert "lora_te_model_layers_0_mlp_down_proj.lora_down.weight" in load_file(tmp_path / "kohya" / "lora.safetensors")
    convert_adapter(str(tmp_path / "kohya" / "lora.safetensors"), tmp_path / "back", base=base)
    convert_adapter(str(source), tmp_path / "diffusers", style="diffusers", component="transformer")
    convert_adapter(str(source), tmp_path / "bf16", dtype=torch.bfloat16)
    for folder, tolerance in (("back", 1e-6), ("diffusers", 1e-6), ("bf16", 2e-2)):
        ours = put_on(tmp_path / f"{folder}-on", base, tmp_path / folder)
        for module, tensor in wanted.items():
            gap = ours[f"{module}.weight"].double() - read(Path(base))[f"{module}.weight"].double() - tensor
            assert float(gap.norm()) <= tolerance * float(tensor.norm()) + 1e-6
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 6
    kept = convert_adapter(str(source), tmp_path / "small", rank=2)
    smaller = load_file(tmp_path / "small" / "adapter_model.safetensors")
    for module, tensor in wanted.items():
        gap = float((change(smaller, module) - tensor).norm() / tensor.norm())
        assert gap == pytest.approx(kept[module].error, rel=1e-4)
        s = torch.linalg.svdvals(tensor)
        assert gap == pytest.approx(float(s[2:].norm() / s.norm()), rel=1e-4)


def test_what_has_no_low_rank_form_is_not_converted(tmp_path: Path) -> None:
    """It is named."""
    state = {**lora(LINEAR), "base_model.model.lm_head.weight": torch.ones(40, 16)}
    with pytest.raises(AdapterError, match=r"lm_head\.weight"):
        convert_adapter(str(save_lora(tmp_path / "a", state)), tmp_path / "b")


def test_info_tells_what_is_there(tmp_path: Path) -> None:
    """Ranks, scales, norms, features."""
    state = lora(LINEAR, rank=5)
    module = "model.layers.0.mlp.down_proj"
    config = {"r": 5, "lora_alpha": 10, "use_rslora": True, "base_model_name_or_path": "org/base"}
    found = adapter_info(str(save_lora(tmp_path / "a", state, **config)))
    assert found.style == "peft" and found.base == "org/base" and list(found.features) == ["rsLoRA"]
    facts = found.modules[module]
    assert facts["rank"] == 5 and facts["shape"] == [16, 30] and facts["scale"] == pytest.approx(10 / 5**0.5)
    assert facts["norm"] == pytest.approx(float(change(state, module, 10 / 5**0.5).norm()), rel=1e-6)


@pytest.mark.parametrize("basis", [1, 2, 3])
def test_packed_adapters_are_recovered_to_the_error_that_is_told(tmp_path: Path, basis: int) -> None:
    """With as many basis models as adapters, exactly; ranks and targets may differ."""
    states = [lora(dict(list(LINEAR.items())[: 1 if i == 2 else 2]), rank=2 + i, seed=i) for i in range(3)]
    named = {f"a{i}": str(save_lora(tmp_path / f"a{i}", s, r=2 + i, lora_alpha=4)) for i, s in enumerate(states)}
    errors = pack_adapters(named, tmp_path / "packed", basis)
    for i, (name, state) in enumerate(zip(named, states, strict=True)):
        kept = recover_adapter(tmp_path / "packed", name, tmp_path / f"out{i}")
        ours = load_file(tmp_path / f"out{i}" / "adapter_model.safetensors")
        for module in errors[name]:
            wanted = change(state, module, 4 / (2 + i))
            gap = float((change(ours, module) - wanted).norm() / wanted.norm())
            assert gap == pytest.approx(errors[name][module], rel=1e-3, abs=2e-6) and kept[module].error >= 0
            assert basis < 3 or gap < 2e-6


def test_equal_adapters_need_one_basis_model(tmp_path: Path) -> None:
    """Even where their factors look unlike: a turn of them is taken out first."""
    state = lora(LINEAR)
    turn = torch.linalg.qr(noise(4, 4)).Q
    other = {k: (turn @ v if "lora_A" in k else v @ turn.mT) for k, v in state.items()}
    named = {"a": str(save_lora(tmp_path / "a", state)), "b": str(save_lora(tmp_path / "b", other))}
    errors = pack_adapters(named, tmp_path / "packed", 1)
    assert max(e for modules in errors.values() for e in modules.values()) < 1e-5
    with pytest.raises(RecipeError, match="give 1 to 2"):
        pack_adapters(named, tmp_path / "more", 3)
    with pytest.raises(RecipeError, match="Did you mean"):
        recover_adapter(tmp_path / "packed", "aa", tmp_path / "x")


def test_bases_are_orthogonal_and_the_same_for_everybody() -> None:
    """Rows of one orthogonal matrix, whoever asks for which."""
    rows = torch.cat([orthogonal_basis(36, 4, i, seed=3, name="x") for i in range(9)]).double()
    assert torch.allclose(rows @ rows.mT, torch.eye(36, dtype=torch.float64), atol=1e-6)
    assert torch.equal(orthogonal_basis(36, 4, 5, seed=3, name="x").double(), rows[20:24])
    assert not torch.equal(orthogonal_basis(36, 4, 5, seed=4, name="x").double(), rows[20:24])
    with pytest.raises(RecipeError, match="9 concepts of this rank fit"):
        orthogonal_basis(36, 4, 9)


def test_adapters_of_such_bases_do_not_interfere_when_they_are_summed(tmp_path: Path) -> None:
    """On the inputs that one reads, the sum does what that one does."""
    base = str(save_model(tmp_path / "base", base_of(SHAPES)))
    folders = []
    for i in range(3):
        start_adapter(base, tmp_path / f"s{i}", targets=["q_proj", "down_proj"], rank=4, index=i)
        state = load_file(tmp_path / f"s{i}" / "adapter_model.safetensors")
        assert all(not bool(v.any()) for k, v in state.items() if "lora_B" in k)
        trained = {k: noise(*v.shape, seed=i) if "lora_B" in k else v for k, v in state.items()}
        folders.append(str(save_lora(tmp_path / f"t{i}", trained)))
    plait.merge({"method": "task_arithmetic", "experts": folders, "output": "adapter"}, tmp_path / "sum")
    total = load_file(tmp_path / "sum" / "adapter_model.safetensors")
    for folder in folders:
        state = read(Path(folder))
        for module in LINEAR:
            inputs = state[f"base_model.model.{module}.lora_A.weight"].double().mT
            alone, together = change(state, module) @ inputs, change(total, module) @ inputs
            assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert max(overlap(folders[0], folders[1]).values()) < 1e-10
    assert min(overlap(folders[0], folders[0]).values()) == pytest.approx(1.0)


def test_commands(tmp_path: Path) -> None:
    """Each verb says what it did."""
    base, model, _, _ = models(tmp_path)
    runner = CliRunner()

    def call(*words: str) -> str:
        result = runner.invoke(app, list(words))
        assert result.exit_code == 0, result.output + str(result.exception)
        return result.output

    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert "of the whole change is left out" in call("adapter", "extract", base, model, "-o", a, "-r", "3")
    assert "4 modules" in call("adapter", "convert", a, "-o", b, "--energy", "0.5", "--for", "vllm")
    assert "rank" in call("adapter", "info", a) and json.loads(call("adapter", "info", b, "--json"))["style"] == "peft"
    assert "recovered to within" in call("adapter", "pack", f"x={a}", f"y={b}", "-o", str(tmp_path / "p"), "-p", "2")
    assert "recovered to within" in call("recover", str(tmp_path / "p"), "y", "-o", str(tmp_path / "y"))
    words = ("-r", "2", "--index", "1", "--target", "q_proj")
    assert "1 modules" in call("adapter", "start", base, "-o", str(tmp_path / "s"), *words)
    assert "mean of 4 modules" in call("adapter", "overlap", a, b)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: linear\nexperts: ['{a}', '{b}']\noutput: adapter\n")
    assert "an adapter of 4 modules" in call("merge", str(recipe), "-o", str(tmp_path / "m"), "--for", "vllm")
    assert json.loads((tmp_path / "m" / "adapter_config.json").read_text())["r"] == 8
