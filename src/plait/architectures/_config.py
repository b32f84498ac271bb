"""The few facts that config.json states about a model's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["depth_keys", "resize_depth", "tie_flag"]

_DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    text = config.get("text_config")
    if isinstance(text, Mapping):
        yield text


def tie_flag(config: Mapping[str, Any]) -> bool:
    """Tell whether the output projection is the embedding."""
    for section in _sections(config):
        if isinstance(section.get("tie_word_embeddings"), bool):
            return bool(section["tie_word_embeddings"])
    # transformers' default for the families that do not write the flag (BERT, GPT-2, T5, Gemma) is tied;
    # the Llama family writes it when it is tied.
    return str(config.get("model_type", "")).startswith(("bert", "roberta", "gpt2", "t5", "gemma", "distilbert"))


def depth_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys that state the number of layers."""
    return [key for key in _DEPTH if isinstance(config.get(key), int)]


def resize_depth(config: dict[str, Any], origin: Sequence[int]) -> dict[str, Any]:
    """Return the config of a model whose new layer i is the old layer `origin[i]`.

    Lists with one entry per layer (`layer_types`, …) are rearranged alike.
    """
    changed = dict(config)
    for key in depth_keys(config):
        depth = config[key]
        changed[key] = len(origin)
        for name, value in config.items():
            if (
                isinstance(value, list)
                and len(value) == depth > max(origin, default=0)
                and name.startswith(("layer", "mlp_layer", "attn_layer"))
            ):
                changed[name] = [value[i] for i in origin]
    if isinstance(config.get("text_config"), dict) and not depth_keys(config):
        changed["text_config"] = resize_depth(config["text_config"], origin)
    if isinstance(changed.get("max_window_layers"), int) and depth_keys(config):
        changed["max_window_layers"] = min(changed["max_window_layers"], len(origin))
    return changed
