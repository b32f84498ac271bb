"""Adapters and bases written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def base_of(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """A base with these tensors."""
    return {name: (noise(*shape, seed=seed + i) * 0.1).to(dtype) for i, (name, shape) in enumerate(shapes.items())}


def lora(
    shapes: Mapping[str, tuple[int, int]],
    rank: int | Mapping[str, int] = 4,
    seed: int = 0,
    prefix: str = "base_model.model.",
) -> State:
    """A random adapter of matrices: module → (out, in)."""
    state: State = {}
    for i, (module, (m, n)) in enumerate(shapes.items()):
        r = rank if isinstance(rank, int) else rank[module]
        state[f"{prefix}{module}.lora_A.weight"] = noise(r, n, seed=100 * seed + 2 * i) * 0.1
        state[f"{prefix}{module}.lora_B.weight"] = noise(m, r, seed=100 * seed + 2 * i + 1) * 0.1
    return state


def save_lora(folder: Path, state: State, **config: Any) -> Path:
    """Write a PEFT folder."""
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def save_model(folder: Path, state: State, **config: Any) -> Path:
    """Write a model folder."""
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "none", **config}))
    return folder


def change(state: State, module: str, scale: float = 1.0, prefix: str = "base_model.model.") -> Tensor:
    """The dense change of a module."""
    a, b = (state[f"{prefix}{module}.lora_{part}.weight"].double() for part in "AB")
    return scale * b @ a
