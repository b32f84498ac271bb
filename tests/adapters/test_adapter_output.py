"""Adapters as results: what is written, that PEFT loads it, and that it is the merged change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft_models as tiny
import pytest
import torch
from adapter_files import base_of, change, lora, save_lora, save_model
from safetensors.torch import load_file
from torch import Tensor

import plait
from models import read
from plait.errors import AdapterError, OutputError, RecipeError
from plait.methods import Combiner, external, methods

State = dict[str, Tensor]
MODULES = {
    "model.layers.0.self_attn.q_proj": (24, 16),
    "model.layers.0.mlp.down_proj": (16, 40),
    "model.layers.1.self_attn.q_proj": (24, 16),
}
SHAPES = {f"{module}.weight": shape for module, shape in MODULES.items()}
COMBINERS = sorted(name for name, cls in methods().items() if issubclass(cls, Combiner))


def family(home: Path, count: int = 3) -> tuple[str, list[str], list[State]]:
    """A base, and adapters of other ranks and targets on it."""
    save_model(home / "base", base_of({**SHAPES, "model.norm.weight": (16,)}))
    folders, states = [], []
    for i in range(count):
        targets = {m: s for j, (m, s) in enumerate(MODULES.items()) if count == 1 or j != i}
        states.append(lora(targets, rank=2 + i, seed=i + 1))
        folders.append(str(save_lora(home / f"lora{i}", states[-1], r=2 + i, lora_alpha=5)))
    return str(home / "base"), folders, states


def written(folder: Path) -> tuple[State, dict[str, Any]]:
    """Changes that a written adapter makes, and its configuration."""
    config = json.loads((folder / "adapter_config.json").read_text())
    state = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key in state:
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            rank = config["rank_pattern"].get(module, config["r"])
            assert state[key].shape[0] == rank == config["alpha_pattern"].get(module, config["lora_alpha"])
            assert module in config["target_modules"]
            found[f"{module}.weight"] = change(state, module)
    assert config["peft_type"] == "LORA" and not config["use_rslora"] and not config["use_dora"]
    return found, config


def test_a_weighted_sum_of_adapters_is_exact(tmp_path: Path) -> None:
    """Other ranks, other targets, no base at all."""
    _, folders, states = family(tmp_path)
    weights = [0.7, -0.4, 1.2]
    experts = {
        f"e{i}": {"adapter": folder, "weight": w} for i, (folder, w) in enumerate(zip(folders, weights, strict=True))
    }
    plait.merge({"method": "task_arithmetic", "experts": experts, "output": "adapter"}, tmp_path / "out")
    found, _ = written(tmp_path / "out")
    assert found.keys() == SHAPES.keys()
    for name, tensor in found.items():
        module = name.removesuffix(".weight")
        parts = [
            w * change(state, module, 5 / (2 + i))
            for i, (state, w) in enumerate(zip(states, weights, strict=True))
            if f"base_model.model.{module}.lora_A.weight" in state
        ]
        assert torch.allclose(tensor, torch.stack(parts).sum(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", COMBINERS)
def test_an_adapter_is_the_change_of_the_merged_model(tmp_path: Path, name: str) -> None:
    """Of every method, at full rank."""
    cls = methods()[name]
    count = max(cls.min_experts, min(3, cls.max_experts or 3))
    base, folders, _ = family(tmp_path, count)
    example = {"combination": "svd"} if name == "peft" else cls.example
    step = [{name: {external(k): v for k, v in example.items()}}]
    recipe = {"method": step, "base": base, "experts": folders}
    output = {"kind": "adapter", "energy": 1.0}
    plait.merge({**recipe, "output": output}, tmp_path / "adapter")
    plait.merge({**recipe, "dtype": "float32"}, tmp_path / "model")
    found, _ = written(tmp_path / "adapter")
    origin, merged = read(Path(base)), read(tmp_path / "model")
    for key, tensor in found.items():
        wanted = (merged[key] - origin[key]).double()
        rounding = 2.0**-22 * float(merged[key].norm())
        assert float((tensor - wanted).norm()) <= 2e-4 * float(wanted.norm()) + rounding, key


def test_rank_and_energy_are_kept_and_the_error_is_told(tmp_path: Path) -> None:
    """Of each module."""
    base, folders, _ = family(tmp_path)
    recipe = {"method": "task_arithmetic", "base": base, "experts": folders}
    full = plait.merge({**recipe, "output": "adapter"}, tmp_path / "full")
    whole, _ = written(tmp_path / "full")
    assert all(kept.error < 1e-6 for kept in full.kept.values())
    for number, asked in enumerate(({"rank": 2}, {"energy": 0.8}, {"rank": 3, "energy": 0.999})):
        result = plait.merge({**recipe, "output": {"kind": "adapter", **asked}}, tmp_path / str(number))
        found, _ = written(tmp_path / str(number))
        for name, tensor in found.items():
            kept = result.kept[name.removesuffix(".weight")]
            error = float((tensor - whole[name]).norm() / whole[name].norm())
            assert error == pytest.approx(kept.error, rel=1e-4, abs=1e-6)
            assert kept.rank <= asked.get("rank", 99)
            if "energy" in asked and "rank" not in asked:
                assert kept.error**2 <= 0.2 + 1e-6
                s = torch.linalg.svdvals(whole[name]).square()
                assert float(s[: kept.rank - 1].sum() / s.sum()) < 0.8


def test_the_base_is_not_read(tmp_path: Path) -> None:
    """Where only changes count."""
    base, folders, _ = family(tmp_path)
    for method, reads in (("ties", 0), ("linear", 0), ("knots", 0), ("slerp", 3)):
        recipe = {"method": method, "base": base, "experts": folders[: 2 if method == "slerp" else 3]}
        plait.merge({**recipe, "output": {"kind": "adapter", "rank": 4}}, tmp_path / method)
        manifest = json.loads((tmp_path / method / "plait.json").read_text())
        assert manifest["inputs"]["base"]["tensors"] == reads, method


def test_an_adapter_can_be_reproduced(tmp_path: Path) -> None:
    """From its provenance, tensor by tensor."""
    _, folders, _ = family(tmp_path)
    plait.merge({"method": "ties", "experts": folders, "output": {"rank": 3}, "dtype": "bfloat16"}, tmp_path / "out")
    assert plait.reproduce(tmp_path / "out").identical
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft" in card and "base_model_relation: adapter" in card


def test_checkpoints_of_one_run_are_averaged_factor_by_factor(tmp_path: Path) -> None:
    """As the paper of MWA does, where the recipe says so; adapters of other scales are refused."""
    states = [lora(MODULES, seed=i) for i in range(2)]
    folders = [str(save_lora(tmp_path / f"c{i}", state, lora_alpha=8)) for i, state in enumerate(states)]
    metric = {"metric": {"expert0": 2.0, "expert1": 1.0}}
    recipe = {"method": "mwa", "experts": folders, "output": "adapter", "parameters": metric}
    plait.merge({**recipe, "adapters": "factors"}, tmp_path / "apart")
    apart = load_file(tmp_path / "apart" / "adapter_model.safetensors")
    assert all(torch.allclose(apart[k], (states[0][k] + 2 * states[1][k]) / 3, rtol=1e-6, atol=1e-8) for k in apart)
    assert json.loads((tmp_path / "apart" / "adapter_config.json").read_text())["lora_alpha"] == 8
    assert plait.reproduce(tmp_path / "apart").identical
    plait.merge(recipe, tmp_path / "products")
    for name, tensor in written(tmp_path / "products")[0].items():
        module = name.removesuffix(".weight")
        wanted = (change(states[0], module, 2) + 2 * change(states[1], module, 2)) / 3
        assert torch.allclose(tensor, wanted, rtol=1e-5, atol=1e-7)
    other = str(save_lora(tmp_path / "other", states[0], lora_alpha=4))
    with pytest.raises(RecipeError, match="lora_alpha is 8 in"):
        plait.plan({"method": "linear", "experts": [folders[0], other], "output": "adapter", "adapters": "factors"})
    with pytest.raises(RecipeError, match="add `output: adapter`"):
        plait.plan({"method": "linear", "experts": folders, "adapters": "factors"})


def test_vllm_gets_one_rank_that_it_has_kernels_for(tmp_path: Path) -> None:
    """Padded with zeros: the change stays what it is."""
    _, folders, _ = family(tmp_path)
    recipe = {"method": "linear", "experts": folders}
    plait.merge({**recipe, "output": "adapter"}, tmp_path / "peft")
    plait.merge({**recipe, "output": {"kind": "adapter", "for": "vllm"}}, tmp_path / "vllm")
    plain, _ = written(tmp_path / "peft")
    padded, config = written(tmp_path / "vllm")
    assert config["r"] == config["lora_alpha"] == 8 and not config["rank_pattern"] and config["modules_to_save"] is None
    assert all(torch.equal(padded[name], plain[name]) for name in plain)


def test_what_cannot_be_an_adapter_is_refused(tmp_path: Path) -> None:
    """While planning."""
    base, folders, _ = family(tmp_path)
    with pytest.raises(RecipeError, match="full rank of its matrix"):
        plait.plan({"method": "ties", "experts": folders, "output": "adapter"})
    with pytest.raises(RecipeError, match="'slerp' works on weights"):
        plait.plan({"method": "slerp", "experts": folders[:2], "output": "adapter"})
    with pytest.raises(RecipeError, match="no matrices"):
        state = {**read(Path(base))}
        state["model.norm.weight"] = state["model.norm.weight"] + 1
        other = str(save_model(tmp_path / "other", state))
        plait.plan({"method": "linear", "base": base, "experts": [folders[0], other], "output": {"rank": 3}})
    with pytest.raises(OutputError, match="exists already"):
        plait.merge({"method": "linear", "experts": folders, "output": "adapter"}, tmp_path / "base")
    conv = save_lora(
        tmp_path / "conv", {f"base_model.model.c.lora_{p}.weight": torch.ones(3, 3, 1, 1) for p in "AB"}, r=3
    )
    with pytest.raises(AdapterError, match="vLLM loads no LoRA of these modules"):
        plait.merge({"method": "linear", "experts": [str(conv)], "output": {"for": "vllm"}}, tmp_path / "c")


LAYOUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (tiny.llama, {"target_modules": ["q_proj", "down_proj", "lm_head"]}),
    "embedding": (tiny.llama, {"target_modules": ["embed_tokens", "v_proj"]}),
    "gpt2": (tiny.gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "convolutions": (tiny.convolutions, {"target_modules": ["first", "point", "line", "out"]}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_peft_loads_what_is_written(tmp_path: Path, layout: str) -> None:
    """And makes of it the merged model, to the same logits."""
    build, settings = LAYOUTS[layout]
    base = tiny.save_model(build(), tmp_path / "base")
    folders = [
        str(tiny.save_adapter(tiny.train(build(), seed=i, r=2 + i, lora_alpha=3, **settings), tmp_path / f"a{i}"))
        for i in range(2)
    ]
    recipe = {
        "method": "task_arithmetic",
        "base": str(base),
        "experts": folders,
        "parameters": {"weight": {"expert0": 0.6}},
    }
    plait.merge({**recipe, "output": "adapter"}, tmp_path / "adapter")
    plait.merge(recipe, tmp_path / "model")
    merged = build()
    merged.load_state_dict(read(tmp_path / "model"), strict=False)
    loaded = tiny.load_adapter(build(), tmp_path / "adapter")
    if layout == "convolutions":
        ours = tiny.merged_by_peft(loaded, tmp_path / "peft")
        assert all(torch.allclose(t, merged.state_dict()[k], rtol=1e-5, atol=1e-6) for k, t in ours.items())
        return
    tokens = torch.arange(12).view(2, 6)
    loaded.eval()
    merged.eval()
    with torch.no_grad():
        ours, theirs = loaded(input_ids=tokens).logits, merged(input_ids=tokens).logits
        plain = build().eval()(input_ids=tokens).logits
    assert (theirs - plain).abs().max() > 1e-3
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
