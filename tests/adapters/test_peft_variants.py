"""Every kind of LoRA that PEFT writes, read and put on its base: equal to PEFT's own merge_and_unload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft_models as tiny
import pytest
import torch
from torch import nn

import plait
from models import read

ATTENTION = ["q_proj", "v_proj"]
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

FUSED = {
    "r": 2,
    "lora_alpha": 3,
    "target_modules": ["q_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}
VARIANTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "alpha": (tiny.llama, {"r": 4, "lora_alpha": 7, "target_modules": EVERY}),
    "rslora": (tiny.llama, {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ATTENTION}),
    "patterns": (
        tiny.llama,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ATTENTION,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj": 6},
            "alpha_pattern": {"q_proj": 5, "layers.1.*.v_proj": 3},
        },
    ),
    "rslora patterns": (
        tiny.llama,
        {"r": 4, "use_rslora": True, "target_modules": ATTENTION, "rank_pattern": {"v_proj": 9}},
    ),
    "layers": (tiny.llama, {"r": 3, "target_modules": ATTENTION, "layers_to_transform": [1]}),
    "embedding": (tiny.llama, {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]}),
    "tied embedding": (
        lambda: tiny.llama(tie_word_embeddings=True),
        {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]},
    ),
    "head": (tiny.llama, {"r": 4, "target_modules": ["lm_head", "q_proj"]}),
    "fan in fan out": (tiny.gpt2, {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2 by itself": (tiny.gpt2, {"r": 4, "target_modules": ["c_attn", "c_proj"]}),
    "convolutions": (tiny.convolutions, {"r": 2, "lora_alpha": 3, "target_modules": ["first", "point", "line", "out"]}),
    "dora": (tiny.llama, {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": EVERY}),
    "dora embedding": (tiny.llama, {"r": 4, "use_dora": True, "target_modules": ["embed_tokens", "o_proj"]}),
    "dora convolutions": (tiny.convolutions, {"r": 2, "use_dora": True, "target_modules": ["first", "line", "out"]}),
    "dora gpt2": (tiny.gpt2, {"r": 4, "use_dora": True, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "lora bias": (
        lambda: tiny.llama(attention_bias=True),
        {"r": 4, "lora_alpha": 6, "lora_bias": True, "target_modules": ATTENTION},
    ),
    "trained biases": (lambda: tiny.llama(attention_bias=True), {"r": 4, "bias": "all", "target_modules": ATTENTION}),
    "modules to save": (tiny.llama, {"r": 4, "target_modules": ATTENTION, "modules_to_save": ["lm_head", "norm"]}),
    "tokens": (tiny.llama, {"r": 4, "target_modules": ATTENTION, "trainable_token_indices": [3, 0, 17]}),
    "tokens of an embedding": (
        tiny.llama,
        {"r": 4, "target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [5, 9]}},
    ),
    "fused experts": (lambda: tiny.experts("oss"), FUSED),
    "fused experts, single on disk": (lambda: tiny.experts("qwen"), {**FUSED, "use_rslora": True}),
    "fused experts, other names on disk": (lambda: tiny.experts("mixtral"), FUSED),
    "one of the fused experts": (
        lambda: tiny.experts("oss"),
        {**FUSED, "target_parameters": ["mlp.experts.down_proj"], "rank_pattern": {"experts.down_proj": 3}},
    ),
}


def _put_on(tmp_path: Path, build: Callable[[], nn.Module], settings: dict[str, Any], method: str) -> None:
    base = tiny.save_model(build(), tmp_path / "base")
    wrapped = tiny.train(build(), **settings)
    adapter = tiny.save_adapter(wrapped, tmp_path / "adapter")
    wanted = tiny.merged_by_peft(wrapped, tmp_path / "merged")
    recipe = {"method": method, "base": str(base), "experts": {"a": str(adapter)}}
    plait.merge(recipe, tmp_path / "out", threads=1)
    ours = read(tmp_path / "out")
    assert ours.keys() == read(base).keys()
    assert any(not torch.equal(tensor, read(base)[name]) for name, tensor in ours.items())
    for name, tensor in ours.items():
        assert torch.allclose(tensor, wanted[name], rtol=2e-6, atol=1e-7), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_is_what_peft_makes_of_it(tmp_path: Path, variant: str) -> None:
    """As a change of the base."""
    build, settings = VARIANTS[variant]
    _put_on(tmp_path, build, settings, "task_arithmetic")


@pytest.mark.parametrize("variant", ["alpha", "dora", "tokens", "modules to save", "fan in fan out", "lora bias"])
def test_an_adapter_is_a_weight_where_weights_merge(tmp_path: Path, variant: str) -> None:
    """As a model."""
    build, settings = VARIANTS[variant]
    _put_on(tmp_path, build, settings, "linear")
