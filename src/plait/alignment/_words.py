"""Tokens of different tokenizers that mean the same: without marks of a word's start, special ones by their part."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, TypeAlias

from plait.alignment._tokenizer import Tokenizer

__all__ = ["Meaning", "meanings"]

#: ("word", text) at the start of a word, ("part", text) inside, ("special", role)
Meaning: TypeAlias = tuple[str, str]

_MARKS = ("Ġ", "▁")
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def meanings(tokenizer: Tokenizer, rows: int) -> dict[Meaning, int]:
    """What each token means → its number, of tokens that have one of `rows` rows.

    SentencePiece marks the start of a word by ▁, byte-level BPE by Ġ: whichever of the two more tokens begin with. Of
    two tokens that mean the same the first counts.
    """
    counts = {mark: sum(text.startswith(mark) for text in tokenizer.ids) for mark in _MARKS}
    mark = max(_MARKS, key=lambda m: counts[m])
    special = _special(tokenizer)
    found: dict[Meaning, int] = {}
    for text, number in sorted(tokenizer.ids.items(), key=lambda item: item[1]):
        if number >= rows:
            continue
        if text in special:
            meaning = ("special", special[text])
        elif text.startswith(mark):
            meaning = ("word", text.removeprefix(mark))
        else:
            meaning = ("part", text)
        found.setdefault(meaning, number)
    return found


def _special(tokenizer: Tokenizer) -> dict[str, str]:
    settings: Any = None
    with suppress(ValueError):
        settings = json.loads(tokenizer.files.get("tokenizer_config.json", b"{}"))
    found: dict[str, str] = {}
    for role in _ROLES:
        token = settings.get(role) if isinstance(settings, dict) else None
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found.setdefault(text, role)
    return found
