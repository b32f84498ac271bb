"""Adapter files: key styles of other libraries, what is refused by name, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import base_of, change, lora, noise, save_lora, save_model
from safetensors.torch import save_file
from torch import Tensor

import plait
from models import read
from plait.errors import AdapterError, MissingModelError, PlaitError, RecipeError

State = dict[str, Tensor]
UNET = {
    "conv_in.weight": (8, 4, 3, 3),
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight": (8, 8),
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.weight": (8, 8),
    "mid_block.attentions.0.proj_in.weight": (6, 8, 1, 1),
    "conv_out.bias": (4,),
}
Q, OUT = list(UNET)[1].removesuffix(".weight"), list(UNET)[2].removesuffix(".weight")


def merged(home: Path, base: State, file: Path, **recipe: Any) -> State:
    folder = save_model(home / "base", base)
    plait.merge(
        {"method": "task_arithmetic", "base": str(folder), "experts": {"a": str(file)}, **recipe},
        home / "out",
        threads=1,
    )
    return read(home / "out")


def check(ours: State, base: State, changes: dict[str, Tensor]) -> None:
    for name, tensor in ours.items():
        wanted = base[name].double() + changes.get(name, torch.zeros(1)).double()
        assert torch.allclose(tensor.double(), wanted, rtol=1e-6, atol=1e-7), name


def conv(down: Tensor, up: Tensor) -> Tensor:
    flat = up.double().flatten(1) @ down.double().flatten(1)
    return flat.reshape(up.shape[0], *down.shape[1:])


def test_kohya_names_and_alphas(tmp_path: Path) -> None:
    """Dots are underscores; alpha stands in the file, and is the rank where it does not."""
    base = base_of(UNET)
    state: State = {}
    for number, (name, shape) in enumerate(list(UNET.items())[:4]):
        flat = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        kernel = shape[2:]
        state[f"{flat}.lora_down.weight"] = noise(2, shape[1], *kernel, seed=number)
        state[f"{flat}.lora_up.weight"] = noise(shape[0], 2, *(1 for _ in kernel), seed=number + 9)
        if number:
            state[f"{flat}.alpha"] = torch.tensor(1.0)
    save_file(state, tmp_path / "kohya.safetensors")
    changes = {}
    for number, name in enumerate(list(UNET)[:4]):
        flat = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        product = conv(state[f"{flat}.lora_down.weight"], state[f"{flat}.lora_up.weight"])
        changes[name] = product * (0.5 if number else 1.0)
    check(merged(tmp_path, base, tmp_path / "kohya.safetensors"), base, changes)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("{module}.lora_A.weight", "{module}.lora_B.weight"),
        ("{module}.lora.down.weight", "{module}.lora.up.weight"),
        ("{module}.lora_linear_layer.down.weight", "{module}.lora_linear_layer.up.weight"),
        ("{owner}.processor.{leaf}_lora.down.weight", "{owner}.processor.{leaf}_lora.up.weight"),
    ],
)
def test_diffusers_names(tmp_path: Path, down: str, up: str) -> None:
    """New and old names, under the component's name."""
    base = base_of(UNET)
    state: State = {}
    changes = {}
    for number, module in enumerate((Q, OUT)):
        owner, leaf = module.removesuffix(".0").rpartition(".")[::2]
        a, b = noise(3, 8, seed=number), noise(8, 3, seed=number + 5)
        words = {"module": f"unet.{module}", "owner": f"unet.{owner}", "leaf": leaf}
        state |= {down.format(**words): a, up.format(**words): b}
        changes[f"{module}.weight"] = b.double() @ a.double()
    folder = tmp_path / "pipeline_lora"
    folder.mkdir()
    save_file(state, folder / "pytorch_lora_weights.safetensors")
    check(merged(tmp_path, base, folder), base, changes)


def test_diffusers_keeps_alpha_in_the_metadata(tmp_path: Path) -> None:
    """It is read there."""
    base = base_of(UNET)
    a, b = noise(3, 8), noise(8, 3, seed=1)
    metadata = {"unet.r": 3, "unet.lora_alpha": 6, "unet.target_modules": ["to_q"]}
    save_file(
        {f"unet.{Q}.lora_A.weight": a, f"unet.{Q}.lora_B.weight": b},
        tmp_path / "lora.safetensors",
        metadata={"lora_adapter_metadata": json.dumps(metadata)},
    )
    ours = merged(tmp_path, base, tmp_path / "lora.safetensors")
    check(ours, base, {f"{Q}.weight": 2 * b.double() @ a.double()})


BASE = {
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.1.mlp.up_proj.weight": (12, 8),
    "lm_head.weight": (5, 8),
}
UP = {"model.layers.0.mlp.up_proj": (12, 8), "model.layers.1.mlp.up_proj": (12, 8)}


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("model.", ""),
        ("", "transformer."),
        ("model.", "model.language_model."),
        ("language_model.model.", "model.language_model."),
    ],
)
def test_other_prefixes_are_found(tmp_path: Path, here: str, there: str) -> None:
    """A base saved without its head's class, or under another name of its text tower."""
    base = base_of({name.replace("model.", here, 1): shape for name, shape in BASE.items()})
    modules = {name.replace("model.", there, 1): shape for name, shape in UP.items()}
    state = lora(modules, seed=3)
    changes = {
        name.replace("model.", here, 1) + ".weight": change(state, other)
        for name, other in zip(UP, modules, strict=True)
    }
    check(merged(tmp_path, base, save_lora(tmp_path / "lora", state)), base, changes)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"peft_type": "LOHA"}, "LOHA"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    "olora": ({"init_lora_weights": "olora"}, "olora"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    "replicated": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "quantised": ({"use_qalora": True}, "use_qalora"),
    "unheard of": ({"use_marvels": 3}, "use_marvels"),
    "rank": ({"r": "many"}, "rank or alpha"),
    "no rank": ({"r": 0}, "rank below 1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    """Never read as something else."""
    config, word = REFUSED[kind]
    folder = save_lora(tmp_path / "lora", lora(UP), **config)
    with pytest.raises(AdapterError, match=word):
        merged(tmp_path, base_of(BASE), folder)


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("model.layers.0.mlp.up_proj.hada_w1_a", "LoHa"),
        ("model.layers.0.mlp.up_proj.lokr_w1", "LoKr"),
        ("lora_unet_mid.lora_mid.weight", "Tucker"),
        ("lora_unet_mid.dora_scale", "dora_scale"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_E", "AdaLoRA"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path: Path, key: str, word: str) -> None:
    """By what stands in the file."""
    save_file({**lora(UP, prefix=""), key: torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=word):
        merged(tmp_path, base_of(BASE), tmp_path / "a.safetensors")


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    """Halves of pairs, unknown tensors, a missing configuration."""
    state = lora(UP)
    half = {k: v for k, v in state.items() if "1.mlp.up_proj.lora_B" not in k}
    with pytest.raises(AdapterError, match="lacks its factor B"):
        merged(tmp_path / "1", base_of(BASE), save_lora(tmp_path / "half", half))
    bad = {**state, next(iter(state)): torch.ones(3, 8)}
    with pytest.raises(AdapterError, match="do not fit each other"):
        merged(tmp_path / "2", base_of(BASE), save_lora(tmp_path / "bad", bad))
    save_file(state, tmp_path / "alone.safetensors")
    with pytest.raises(AdapterError, match="without adapter_config"):
        merged(tmp_path / "3", base_of(BASE), tmp_path / "alone.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(MissingModelError, match="without its weights"):
        merged(tmp_path / "4", base_of(BASE), tmp_path / "empty")


def test_adapters_of_other_models_do_not_fit(tmp_path: Path) -> None:
    """Missing modules and other shapes are named while planning."""
    with pytest.raises(AdapterError, match=r"model\.layers\.7\.mlp\.up_proj"):
        merged(tmp_path / "1", base_of(BASE), save_lora(tmp_path / "a", lora({"model.layers.7.mlp.up_proj": (12, 8)})))
    with pytest.raises(AdapterError, match=r"\[12, 8\], but the factors are A \[4, 9\]"):
        merged(tmp_path / "2", base_of(BASE), save_lora(tmp_path / "b", lora({"model.layers.0.mlp.up_proj": (12, 9)})))


def test_a_tied_head_is_not_changed_alone(tmp_path: Path) -> None:
    """The embedding would change with it."""
    base = base_of({"model.embed_tokens.weight": (5, 8), "lm_head.weight": (5, 8)})
    folder = save_model(tmp_path / "base", base, tie_word_embeddings=True, architectures=["XForCausalLM"])
    adapter = save_lora(tmp_path / "a", lora({"lm_head": (5, 8)}))
    with pytest.raises(AdapterError, match=r"tied to model\.embed_tokens\.weight"):
        plait.plan({"method": "task_arithmetic", "base": str(folder), "experts": [str(adapter)]})


def test_an_adapter_needs_a_model(tmp_path: Path) -> None:
    """A change alone is no expert of a method on weights."""
    folder = save_lora(tmp_path / "a", lora(UP))
    with pytest.raises(RecipeError, match="is an adapter, which changes a model and is none"):
        plait.plan({"method": "linear", "experts": [str(folder), str(folder)]})
    base = save_model(tmp_path / "base", base_of(BASE))
    with pytest.raises(RecipeError, match="holds no adapter"):
        plait.plan({"method": "linear", "experts": [{"model": str(base), "adapter": str(base)}]})
    with pytest.raises(PlaitError, match="needs a model or an adapter"):
        plait.plan({"method": "linear", "experts": [{"weight": 1.0}]})
