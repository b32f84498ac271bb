"""The configuration of a PEFT adapter: what it says about scales, and what cannot be read as a low-rank change."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.errors import AdapterError

__all__ = ["METADATA", "AdapterConfig", "parse_config", "read_configs"]

#: where diffusers keeps the configuration in a file's own metadata
METADATA = "lora_adapter_metadata"

#: settings that change nothing in what the stored tensors mean
_NEUTRAL = frozenset(
    {
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_config",
        "megatron_core",
        "trainable_token_indices",
        "eva_config",
        "use_dora",
        "runtime_config",
        "lora_bias",
        "target_parameters",
        "qalora_group_size",
        "ensure_weight_tying",
        "loftq_config",
        "init_lora_weights",
    }
)
#: ways to start training that leave the base as it is; the others also change the base when they are loaded
_PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "true", "false", "none"})


@dataclass(frozen=True)
class AdapterConfig:
    """What is needed of adapter_config.json.

    Attributes:
        rank: default rank.
        alpha: default alpha.
        rank_pattern: ranks of modules whose names match.
        alpha_pattern: the same for alpha.
        rslora: whether the scale is alpha/√r instead of alpha/r.
        fan_in_fan_out: whether target weights are stored as (in, out).
        dora: whether magnitudes are part of the adapter.
        tokens: rows of embeddings that are replaced: module → indices.
        parameters: names of targeted parameters.
        raw: the file as it is.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    fan_in_fan_out: bool = False
    dora: bool = False
    tokens: Mapping[str, Sequence[int]] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """Return the rank the configuration gives a module."""
        return int(self.rank_pattern.get(_matching(self.rank_pattern, module), self.rank))

    def scale(self, module: str) -> float:
        """Return the factor of B A for a module: alpha/r, or alpha/√r for rsLoRA."""
        rank = self.rank_of(module)
        alpha = float(self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.alpha))
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _matching(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that matches the end of a module's name, by PEFT's rule."""
    for key in patterns:
        if re.match(rf"(.*\.)?({key})$", module):
            return key
    return module


def parse_config(raw: Mapping[str, Any], label: str) -> AdapterConfig:
    """Check a configuration.

    Raises:
        AdapterError: for a kind of adapter, or a setting, under which the tensors are no low-rank change of the base.
    """
    kind = str(raw.get("peft_type", "LORA")).upper().removeprefix("PEFTTYPE.")
    if kind != "LORA":
        raise AdapterError(
            f"{label} is an adapter of type {kind}: plait reads LoRA (with rsLoRA, DoRA and biases). Merge it into its "
            "base with PEFT's merge_and_unload, and name that model instead."
        )
    start = str(raw.get("init_lora_weights", True)).lower()
    if start not in _PLAIN_STARTS:
        raise AdapterError(
            f"{label} was started with init_lora_weights: {start!r}, which changes the base model too when it is "
            "loaded. Save it from PEFT with path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
        )
    for key, value in raw.items():
        if key not in _NEUTRAL and value not in (None, False, {}, []):
            raise AdapterError(
                f"{label} sets {key}: {value!r}, under which plait does not know what the tensors mean. Merge it into "
                "its base with PEFT's merge_and_unload, and name that model instead."
            )
    try:
        rank, alpha = int(raw.get("r", 8)), float(raw.get("lora_alpha", 8))
        rank_pattern = {str(k): int(v) for k, v in (raw.get("rank_pattern") or {}).items()}
        alpha_pattern = {str(k): float(v) for k, v in (raw.get("alpha_pattern") or {}).items()}
        for pattern in (*rank_pattern, *alpha_pattern):
            re.compile(pattern)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise AdapterError(f"{label}: rank or alpha in adapter_config.json cannot be read: {error}.") from None
    if rank < 1 or any(value < 1 for value in rank_pattern.values()):
        raise AdapterError(f"{label}: adapter_config.json gives a rank below 1.")
    tokens = raw.get("trainable_token_indices") or {}
    if not isinstance(tokens, Mapping):
        tokens = {"embed_tokens": tokens}
    return AdapterConfig(
        rank,
        alpha,
        rank_pattern,
        alpha_pattern,
        bool(raw.get("use_rslora")),
        bool(raw.get("fan_in_fan_out")),
        bool(raw.get("use_dora")),
        {str(k): tuple(int(i) for i in v) for k, v in tokens.items()},
        tuple(raw.get("target_parameters") or ()),
        dict(raw),
    )


def read_configs(raw: Mapping[str, Any], label: str) -> dict[str, AdapterConfig]:
    """Return the configuration of each component of a pipeline; of an adapter of one model, under the empty name.

    Raises:
        AdapterError: as `parse_config`.
    """
    if METADATA not in raw:
        return {"": parse_config(raw, label)} if raw else {}
    try:
        flat = json.loads(raw[METADATA])
    except ValueError as error:
        raise AdapterError(f"the metadata of {label} cannot be read: {error}.") from None
    components: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, name = key.partition(".")
        components.setdefault(component, {})[name] = value
    return {component: parse_config(content, label) for component, content in components.items()}
