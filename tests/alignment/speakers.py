"""Tiny models with tokenizers: 256 tokens, three more, and a padded table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import CONFIG, llama, save

State = dict[str, Tensor]
TOKENS = 256
SHAPE = {"num_hidden_layers": 2}


def words(count: int = TOKENS) -> dict[str, int]:
    """An ordinary vocabulary: two special tokens, then words."""
    return {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, count)}


def write_tokenizer(
    folder: Path, vocabulary: Mapping[str, int], added: Sequence[str] = (), template: str | None = None
) -> None:
    """A word-level tokenizer.json; `added` are special tokens numbered behind the words."""
    entries = [_entry(text, vocabulary[text]) for text in ("<s>", "</s>", "<unk>") if text in vocabulary]
    entries += [_entry(text, len(vocabulary) + i) for i, text in enumerate(added)]
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": entries,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(vocabulary), "unk_token": "<unk>"},
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    if template is not None:
        settings["chat_template"] = template
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _entry(text: str, number: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": text, **flags}


def speaker(
    folder: Path,
    seed: int,
    rows: int,
    vocabulary: Mapping[str, int],
    added: Sequence[str] = (),
    *,
    tied: bool = False,
    near: State | None = None,
    template: str | None = None,
) -> State:
    """Write a model with its tokenizer; `near` is what it was fine-tuned from."""
    state = llama(seed, layers=2, vocab=rows, tied=tied)
    if near is not None:
        for name, values in near.items():
            count = min(rows, values.shape[0]) if name in ("model.embed_tokens.weight", "lm_head.weight") else None
            state[name][:count] = values[:count] + 0.1 * state[name][:count]
    save(
        folder,
        state,
        {**CONFIG, "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 1},
        vocab_size=rows,
        **SHAPE,
    )
    write_tokenizer(folder, vocabulary, added, template)
    return state


def family(home: Path, tied: bool = False) -> dict[str, State]:
    """A base of 256 tokens; one fine-tune with three more, one whose table is padded to 320 rows."""
    base = speaker(home / "base", 0, TOKENS, words(), tied=tied)
    more = speaker(home / "more", 1, TOKENS + 3, words(), ("<a>", "<b>", "<c>"), tied=tied, near=base)
    padded = speaker(home / "padded", 2, 320, words(), tied=tied, near=base)
    return {"base": base, "more": more, "padded": padded}


def ids_of(folder: Path) -> dict[str, int]:
    """What a written tokenizer.json says."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    return {**whole["model"]["vocab"], **{e["content"]: e["id"] for e in whole["added_tokens"]}}


def rows_by_hand(
    table: str, states: Mapping[str, State], numbers: Mapping[str, Mapping[str, int]], out: Mapping[str, int], rows: int
) -> dict[str, Tensor]:
    """Each model's table in the output's order, a missing token's row from its only owner, the base, or the mean."""
    found = {}
    for name, state in states.items():
        new = torch.full((rows, state[table].shape[1]), float("nan"))
        for text, number in out.items():
            owners = [n for n in states if text in numbers[n] and numbers[n][text] < states[n][table].shape[0]]
            if name in owners:
                new[number] = state[table][numbers[name][text]]
            elif len(owners) == 1 or "base" not in owners:
                new[number] = sum(states[n][table][numbers[n][text]] for n in owners) / len(owners)
            else:
                new[number] = states["base"][table][numbers["base"][text]]
        found[name] = new
    return found
