"""Compare what config.json and the tensors say of models that are to be merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from plait.architectures import tie_flag
from plait.checkpoints import Checkpoint, short
from plait.security._findings import Finding, Level

__all__ = ["compare_configs"]

_SAME: Mapping[str, Level] = {
    "model_type": "warns",
    "hidden_act": "blocks",
    "hidden_activation": "blocks",
    "num_attention_heads": "blocks",
    "num_key_value_heads": "blocks",
    "head_dim": "blocks",
    "attention_bias": "warns",
    "sliding_window": "warns",
    "max_position_embeddings": "warns",
    "position_embedding_type": "blocks",
    "partial_rotary_factor": "blocks",
}
_NORMS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")


def _text(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The part of a config that describes the language model."""
    config = config or {}
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else dict(config)


def rope_of(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Theta and scaling of the rotary positions, wherever the config keeps them; empty where it says nothing."""
    text = _text(config)
    found: dict[str, Any] = {}
    parameters = text.get("rope_parameters")
    if isinstance(parameters, Mapping):
        found |= {k: v for k, v in parameters.items() if v is not None}
    if text.get("rope_theta") is not None:
        found.setdefault("rope_theta", text["rope_theta"])
    scaling = text.get("rope_scaling")
    if isinstance(scaling, Mapping):
        found |= {("rope_type" if k == "type" else k): v for k, v in scaling.items() if v is not None}
    if found.get("rope_type") == "default":
        del found["rope_type"]
    return {k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in found.items()}


def compare_configs(models: Mapping[str, Checkpoint]) -> Iterator[Finding]:
    """Yield where each model's settings differ from those of the first one that has a config."""
    configs = {name: c.config for name, c in models.items() if c.config is not None}
    if len(configs) > 1:
        first, *others = configs
        for name in others:
            yield from _pair(first, configs[first] or {}, name, configs[name] or {})
    dtypes = {name: _dtype(c) for name, c in models.items()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        yield Finding(
            "settings",
            "notes",
            "",
            f"the models are stored in different dtypes: {listed}.",
            "The output gets the widest, or the recipe's `dtype`.",
        )


def _dtype(checkpoint: Checkpoint) -> str:
    counted: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        counted[short(tensor.dtype)] += tensor.numel
    return counted.most_common(1)[0][0]


def _pair(first: str, one: Mapping[str, Any], name: str, other: Mapping[str, Any]) -> Iterator[Finding]:
    a, b = _text(one), _text(other)
    rope_a, rope_b = rope_of(one), rope_of(other)
    for key in sorted({*rope_a, *rope_b}):
        if rope_a.get(key) != rope_b.get(key):
            yield Finding(
                "rope",
                "blocks",
                name,
                f"rotary positions differ: {key} is {_say(rope_b.get(key))} in {name} and {_say(rope_a.get(key))} in "
                f"{first}, so that the same query and key weights mean other angles.",
                "Merge models with the same setting, or leave query and key projections out with a `copy` rule.",
            )
    for key, level in _SAME.items():
        if key in a and key in b and a[key] != b[key]:
            yield Finding(
                "settings",
                level,
                name,
                f"{key} is {_say(b[key])} in {name} and {_say(a[key])} in {first}.",
                f"The output gets {first}'s value; say whose files it gets with `files_from`.",
            )
    for key in _NORMS:
        if key in a and key in b and float(a[key]) != float(b[key]):
            yield Finding("settings", "warns", name, f"{key} is {b[key]} in {name} and {a[key]} in {first}.")
    if tie_flag(a) != tie_flag(b):
        tied, loose = (first, name) if tie_flag(a) else (name, first)
        yield Finding(
            "settings",
            "warns",
            name,
            f"{tied} ties its output projection to the embedding, {loose} does not.",
            "Name the model whose config the output should get in `files_from`, and look at the plan's notes.",
        )


def _say(value: Any) -> str:
    return "not set" if value is None else f"{value:g}" if isinstance(value, float) else repr(value)
