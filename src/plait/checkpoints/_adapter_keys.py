"""Names of tensors in adapter files: PEFT's, diffusers' old and new ones, Kohya's; each says a module and a part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from plait.errors import AdapterError, shorten

__all__ = ["Part", "Piece", "is_adapter_names", "parse_keys", "style_of"]

#: A and B of a linear or convolutional layer, of an embedding; the bias of B; DoRA's magnitude; replaced rows of an
#: embedding; Kohya's alpha; a copy of the base's weight; a weight that is trained in full
Part: TypeAlias = Literal["A", "B", "EA", "EB", "bias", "magnitude", "tokens", "alpha", "copy", "full"]

PREFIX = "base_model.model."
_RULES: tuple[tuple[re.Pattern[str], Part], ...] = tuple(
    (re.compile(pattern), part)
    for pattern, part in (
        (r"(.+)\.lora_A(?:\.default)?\.weight", "A"),
        (r"(.+)\.lora_B(?:\.default)?\.weight", "B"),
        (r"(.+)\.lora_B(?:\.default)?\.bias", "bias"),
        (r"(.+)\.lora_embedding_A(?:\.default)?", "EA"),
        (r"(.+)\.lora_embedding_B(?:\.default)?", "EB"),
        (r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", "magnitude"),
        (r"(.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.default)?", "tokens"),
        (r"(.+)\.(?:lora_down|lora\.down|lora_linear_layer\.down)\.weight", "A"),
        (r"(.+)\.(?:lora_up|lora\.up|lora_linear_layer\.up)\.weight", "B"),
        (r"(.+)\.alpha", "alpha"),
        (r"(.+\.base_layer\.(?:weight|bias))", "copy"),
    )
)
_PROCESSOR = re.compile(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
#: parts of other kinds of adapters, by the name that messages give them
_OTHERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"\.lora_E$|\.ranknum$", "AdaLoRA"),
        (r"\.hada_", "LoHa"),
        (r"\.lokr_", "LoKr"),
        (r"\.(oft_|boft_)", "OFT"),
        (r"\.(vera_lambda|vera_A|vera_B)", "VeRA"),
        (r"\.ia3_", "IA3"),
        (r"\.lora_mid\.", "LoCon with a Tucker core (lora_mid)"),
        (r"\.dora_scale$", "Kohya's DoRA (dora_scale)"),
        (r"\.(diff|diff_b)$", "a full difference (diff)"),
        (r"\.(a1|a2|b1|b2)\.weight$", "GLoRA"),
        (r"^prompt_embeddings$|^prefix_", "a prompt"),
    )
)
_MARK = re.compile(
    r"\.(lora_A|lora_B|lora_down|lora_up|lora_embedding_A|lora_linear_layer|hada_w1_a|lokr_w1|lora)(\.|$)"
    r"|_lora\.(down|up)\."
)


@dataclass(frozen=True)
class Piece:
    """What one tensor of an adapter file is."""

    key: str
    module: str
    part: Part


def is_adapter_names(names: Iterable[str]) -> bool:
    """Tell whether tensors of these names are an adapter's."""
    return any(_MARK.search(name) for name in names)


def style_of(names: Iterable[str]) -> Literal["peft", "kohya", "diffusers"]:
    """Tell whose names they are."""
    listed = list(names)
    if any(name.startswith(PREFIX) for name in listed):
        return "peft"
    return "kohya" if any(re.match(r"lora_[a-z0-9]+_", name) for name in listed) else "diffusers"


def parse_keys(names: Iterable[str], label: str) -> list[Piece]:
    """Say what each tensor is.

    Raises:
        AdapterError: for tensors of another kind of adapter, by its name.
    """
    listed = list(names)
    style = style_of(listed)
    found: list[Piece] = []
    unknown: list[str] = []
    for key in listed:
        for pattern, kind in _OTHERS:
            if pattern.search(key):
                raise AdapterError(
                    f"{label} holds {key!r}: that is {kind}, which plait does not read. Merge it into its base with "
                    "the library that made it, and name that model instead."
                )
        piece = _piece(key, style)
        if piece is None:
            unknown.append(key)
        else:
            found.append(piece)
    if unknown:
        raise AdapterError(
            f"{label} holds {len(unknown)} tensors that belong to no low-rank adapter plait knows:\n{shorten(unknown)}"
        )
    return found


def _piece(key: str, style: str) -> Piece | None:
    name = key.removeprefix(PREFIX)
    old = _PROCESSOR.fullmatch(name)
    if old:
        inner = "to_out.0" if old.group(2) == "to_out" else old.group(2)
        return Piece(key, f"{old.group(1)}.{inner}", "A" if old.group(3) == "down" else "B")
    for pattern, part in _RULES:
        match = pattern.fullmatch(name)
        if match:
            return Piece(key, match.group(1).replace(".base_layer.", ".") if part == "copy" else match.group(1), part)
    if style != "peft":
        return None
    return Piece(key, re.sub(r"\.modules_to_save(\.default)?\.", ".", name), "full")
