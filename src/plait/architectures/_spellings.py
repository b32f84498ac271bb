"""Parts that libraries have called by several names, and weights that some files keep in one piece: data, no code."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["FUSED_EXPERTS", "FUSED_ROWS", "spellings"]

# In order: what a name holds → how it is spelt here. Each is a renaming and nothing else, so it can be undone.
_RENAMED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.block_sparse_moe\."), ".mlp."),
    (re.compile(r"(\.experts\.\d+)\.w1\."), r"\1.gate_proj."),
    (re.compile(r"(\.experts\.\d+)\.w3\."), r"\1.up_proj."),
    (re.compile(r"(\.experts\.\d+)\.w2\."), r"\1.down_proj."),
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
    (re.compile(r"\.parametrizations\.weight\.original0$"), ".weight_g"),
    (re.compile(r"\.parametrizations\.weight\.original1$"), ".weight_v"),
)

#: one tensor (experts, rows, columns) → the weights of one expert, below each other, that it holds
FUSED_EXPERTS: dict[str, tuple[str, ...]] = {
    "experts.gate_up_proj": ("gate_proj.weight", "up_proj.weight"),
    "experts.down_proj": ("down_proj.weight",),
}
#: one tensor → the tensors whose rows it holds below each other
FUSED_ROWS: dict[str, tuple[str, ...]] = {
    f"{block}.{whole}.{kind}": tuple(f"{block}.{part}.{kind}" for part in parts)
    for kind in ("weight", "bias")
    for block, whole, parts in (
        ("self_attn", "qkv_proj", ("q_proj", "k_proj", "v_proj")),
        ("mlp", "gate_up_proj", ("gate_proj", "up_proj")),
    )
}


def spellings(names: Iterable[str]) -> dict[str, str]:
    """Name → the spelling in which models are compared; a name whose spelling another one has keeps its own."""
    listed = list(names)
    known = set(listed)
    found: dict[str, str] = {}
    for name in listed:
        spelt = name
        for pattern, words in _RENAMED:
            spelt = pattern.sub(words, spelt)
        found[name] = spelt if spelt == name or spelt not in known else name
    return found
