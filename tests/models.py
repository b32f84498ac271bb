"""Tiny models for tests: folders that look like real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}


#: what a program begins with that hears Ctrl-C even where it was started in the background, which ignores it
HEARS = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


def llama(seed: int, *, layers: int = 3, tied: bool = False, vocab: int = 64, scale: float = 1.0) -> State:
    """A tiny Llama's tensors."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng) * 0.1 * scale

    state: State = {"model.embed_tokens.weight": draw(vocab, 32)}
    for i in range(layers):
        p = f"model.layers.{i}."
        state |= {
            p + "self_attn.q_proj.weight": draw(32, 32),
            p + "self_attn.k_proj.weight": draw(16, 32),
            p + "self_attn.v_proj.weight": draw(16, 32),
            p + "self_attn.o_proj.weight": draw(32, 32),
            p + "mlp.gate_proj.weight": draw(48, 32),
            p + "mlp.up_proj.weight": draw(48, 32),
            p + "mlp.down_proj.weight": draw(32, 48),
            p + "input_layernorm.weight": 1 + draw(32),
            p + "post_attention_layernorm.weight": 1 + draw(32),
        }
    state["model.norm.weight"] = 1 + draw(32)
    if not tied:
        state["lm_head.weight"] = draw(vocab, 32)
    return state


def family(count: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[State, list[State]]:
    """A base and experts near it."""
    base = llama(0, **options)
    experts = []
    for i in range(count):
        step = llama(i + 1, **options)
        experts.append({k: (v + 0.1 * (step[k] - step[k].mean())).to(dtype) for k, v in base.items()})
    return {k: v.to(dtype) for k, v in base.items()}, experts


def save(folder: Path, state: State, config: dict[str, Any] | None = CONFIG, shards: int = 1, **changes: Any) -> Path:
    """Write a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(state)
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = names[i::shards]
            save_file({n: state[n] for n in part}, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def save_family(home: Path, base: State, experts: list[State], **options: Any) -> dict[str, Any]:
    """Write a base and experts; return the recipe's part that names them."""
    save(home / "base", base, **options)
    for i, expert in enumerate(experts):
        save(home / f"expert{i}", expert, **options)
    return {"base": str(home / "base"), "experts": {f"e{i}": str(home / f"expert{i}") for i in range(len(experts))}}


def read(folder: Path) -> State:
    """All tensors of a folder."""
    from safetensors.torch import load_file

    found: State = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def size_of(path: Path) -> int:
    """Bytes of a file that another process may remove at any moment; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
