"""Tiny models with random PEFT adapters: what PEFT itself merges is what plait is compared with."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

State = dict[str, Tensor]


class Convolutions(nn.Module):
    """Convolutions of one and two dimensions, one of them 1 × 1, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.point = nn.Conv2d(8, 6, 1)
        self.line = nn.Conv1d(6, 4, 5)
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Nothing that a test needs."""
        return x


def llama(**changes: Any) -> nn.Module:
    """A tiny Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    options: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        **changes,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**options))


def gpt2() -> nn.Module:
    """A tiny GPT-2, whose weights are stored as (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32))


def experts(kind: str) -> nn.Module:
    """A tiny Mixture of Experts: `qwen` and `mixtral` have one weight per expert on disk, `oss` fused ones."""
    import transformers

    common: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "intermediate_size": 24,
    }
    torch.manual_seed(0)
    if kind == "qwen":
        options = {**common, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
        return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**options))
    if kind == "mixtral":
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**common, num_local_experts=4))
    return transformers.GptOssForCausalLM(transformers.GptOssConfig(**common, num_local_experts=4, head_dim=8))


def convolutions() -> nn.Module:
    """A model without a library."""
    torch.manual_seed(0)
    return Convolutions()


def save_model(model: nn.Module, folder: Path) -> Path:
    """Write a base as it lies on disk."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        folder.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "none"}))
    return folder


def train(model: nn.Module, seed: int = 1, size: float = 0.05, **settings: Any) -> Any:
    """A PEFT model whose adapter's numbers are random, as if it had been trained."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(**settings))
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=rng) * size
            magnitude = "magnitude" in name or "modules_to_save" in name or "trainable_tokens" in name
            parameter.data = parameter.data * (1 + noise) if magnitude else noise
    return wrapped


def save_adapter(wrapped: Any, folder: Path) -> Path:
    """Write the adapter as PEFT does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(folder)
    return folder


def merged_by_peft(wrapped: Any, folder: Path) -> State:
    """What PEFT makes of base and adapter, by the names that it has on disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = wrapped.merge_and_unload()
    return load_file(save_model(model, folder) / "model.safetensors")


def load_adapter(model: nn.Module, folder: Path) -> Any:
    """A model with an adapter on it, as PEFT loads it."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, folder)
