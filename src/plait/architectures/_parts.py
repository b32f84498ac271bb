"""Which matrices of a layer play which part, by the names that model families use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["head_size", "parts_of"]

#: part → ends of names (before `.weight`), the first one found counts
_ENDS: Mapping[str, tuple[str, ...]] = {
    "q": (
        "self_attn.q_proj",
        "attn.q_proj",
        "attention.q_proj",
        "self.query",
        "attention.query",
        "q_lin",
        "SelfAttention.q",
        "wq",
    ),
    "k": (
        "self_attn.k_proj",
        "attn.k_proj",
        "attention.k_proj",
        "self.key",
        "attention.key",
        "k_lin",
        "SelfAttention.k",
        "wk",
    ),
    "v": (
        "self_attn.v_proj",
        "attn.v_proj",
        "attention.v_proj",
        "self.value",
        "attention.value",
        "v_lin",
        "SelfAttention.v",
        "wv",
    ),
    "o": (
        "self_attn.o_proj",
        "self_attn.out_proj",
        "attn.o_proj",
        "attention.out_proj",
        "attention.output.dense",
        "out_lin",
        "SelfAttention.o",
        "attention.wo",
    ),
    "up": (
        "mlp.up_proj",
        "mlp.fc1",
        ".fc1",
        "intermediate.dense",
        "ffn.lin1",
        "DenseReluDense.wi_1",
        "DenseReluDense.wi",
        "feed_forward.w3",
    ),
    "down": ("mlp.down_proj", "mlp.fc2", ".fc2", ".output.dense", "ffn.lin2", "DenseReluDense.wo", "feed_forward.w2"),
}


def parts_of(names: Iterable[str]) -> dict[str, str]:
    """Find the attention and MLP matrices among the names of one layer: part (q, k, v, o, up, down) → name.

    A family whose names are not known, or that fuses several parts into one matrix, gives fewer parts or none.
    """
    weights = [name for name in names if name.endswith(".weight")]
    found: dict[str, str] = {}
    for part, ends in _ENDS.items():
        for end in ends:
            fitting = [n for n in weights if n.endswith(f"{end}.weight") and n not in found.values()]
            if part == "down":
                fitting = [n for n in fitting if not n.endswith("attention.output.dense.weight")]
            if fitting:
                found[part] = fitting[0]
                break
    return found


def head_size(config: Mapping[str, Any] | None) -> int | None:
    """Width of one attention head, from config.json; None where it does not say."""
    for section in ((config or {}), (config or {}).get("text_config") or {}):
        if isinstance(section.get("head_dim"), int):
            return int(section["head_dim"])
        width = section.get("hidden_size", section.get("n_embd", section.get("d_model")))
        heads = section.get("num_attention_heads", section.get("n_head"))
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            return width // heads
    return None
