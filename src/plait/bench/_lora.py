"""Low-rank adapters of an encoder's linear layers, and their files as PEFT writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["add_adapters", "save_adapters"]


class _LoraLinear(nn.Module):
    """A frozen linear layer with a low-rank change: x ↦ Wx + b + α/r · B(Ax), B zero at the start.

    Paper: "LoRA: Low-Rank Adaptation of Large Language Models", Hu et al. 2021 (arXiv:2106.09685).
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = layer
        self.scale = alpha / rank
        bound = 1 / math.sqrt(layer.in_features)  # of A's entries, as a linear layer's own
        start = (2 * torch.rand(rank, layer.in_features, generator=generator) - 1) * bound
        self.lora_A = nn.Parameter(start.to(layer.weight.device))  # rank × in
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, device=layer.weight.device))  # out × rank

    def forward(self, inputs: Tensor) -> Tensor:
        change = nn.functional.linear(nn.functional.linear(inputs, self.lora_A), self.lora_B)
        return self.layer(inputs) + self.scale * change


def _linear_layers(model: nn.Module, targets: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, layer) of the linear and adapted layers whose names end with a target."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | _LoraLinear) and any(name.endswith(target) for target in targets):
            yield name, layer


def add_adapters(
    model: PreTrainedModel, targets: Sequence[str], *, rank: int, alpha: float, generator: torch.Generator
) -> None:
    """Give linear layers an adapter, in place.

    Args:
        model: what is adapted.
        targets: ends of the names of the layers.
        rank: r.
        alpha: α; the change is scaled by α/r.
        generator: what the first A comes from.
    """
    for name, layer in _linear_layers(model, targets):
        parent, _, attribute = name.rpartition(".")
        assert isinstance(layer, nn.Linear)
        setattr(model.get_submodule(parent), attribute, _LoraLinear(layer, rank, alpha, generator))


def save_adapters(
    model: PreTrainedModel, targets: Sequence[str], folder: Path, *, rank: int, alpha: float, base: str
) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        model: with adapters.
        targets: as given to `add_adapters`.
        folder: where to.
        rank: r.
        alpha: α.
        base: the base's folder, as the configuration names it.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, layer in _linear_layers(model, targets):
        if isinstance(layer, _LoraLinear):
            tensors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach().cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach().cpu().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(targets),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
