"""Compare vocabularies, special tokens and chat templates from the tokenizers' files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.architectures import roles_of
from plait.checkpoints import AnyPath, Checkpoint
from plait.security._findings import Finding

__all__ = ["Words", "compare_vocabularies", "words_of"]

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


@dataclass(frozen=True)
class Words:
    """What the files of a tokenizer say.

    Attributes:
        ids: token → number, added tokens included.
        special: role (`eos_token`, …) → token.
        template: the chat template, or None.
    """

    ids: Mapping[str, int] = field(default_factory=dict)
    special: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None


def _json(path: AnyPath) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def words_of(folder: AnyPath | None) -> Words | None:
    """Read a folder's tokenizer.json or vocab.json; None where there is neither."""
    if folder is None:
        return None
    whole = _json(folder / "tokenizer.json")
    model = whole.get("model") if isinstance(whole.get("model"), dict) else {}
    listed: Any = (model or {}).get("vocab") or _json(folder / "vocab.json")
    if isinstance(listed, list):  # unigram: [[token, score], …]
        ids = {str(entry[0]): i for i, entry in enumerate(listed) if isinstance(entry, list) and entry}
    elif isinstance(listed, dict):
        ids = {str(k): v for k, v in listed.items() if isinstance(v, int)}
    else:
        ids = dict[str, int]()
    for added in whole.get("added_tokens") or []:
        if isinstance(added, dict) and isinstance(added.get("id"), int):
            ids[str(added.get("content"))] = added["id"]
    if not ids:
        return None
    settings = _json(folder / "tokenizer_config.json")
    special: dict[str, str] = {}
    for key in _SPECIAL:
        token = settings.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[key] = token
    template = settings.get("chat_template")
    file = folder / "chat_template.jinja"
    if not isinstance(template, str) and file.is_file():
        template = file.read_text(encoding="utf-8")
    return Words(ids, special, template if isinstance(template, str) else None)


def compare_vocabularies(models: Mapping[str, Checkpoint]) -> Iterator[Finding]:
    """Yield where embeddings have other numbers of rows, or rows mean other tokens, than in the first model."""
    yield from _rows(models)
    known = {name: words for name, c in models.items() if (words := words_of(c.folder)) is not None}
    if len(known) < 2:
        return
    first, *others = known
    for name in others:
        yield from _pair(first, known[first], name, known[name])


def _rows(models: Mapping[str, Checkpoint]) -> Iterator[Finding]:
    sizes = {name: _size(checkpoint) for name, checkpoint in models.items()}
    stated = {name: size for name, size in sizes.items() if size is not None}
    if len(set(stated.values())) > 1:
        listed = ", ".join(f"{size:,} in {name}" for name, size in stated.items())
        yield Finding(
            "vocabulary",
            "blocks",
            "",
            f"the embeddings have different numbers of rows: {listed}.",
            "Align the rows by token with `tokenizer: union` or `base` in the recipe.",
        )


def _size(checkpoint: Checkpoint) -> int | None:
    roles = roles_of(checkpoint.tensors)
    tables = [t for n, t in checkpoint.tensors.items() if roles[n].kind == "embedding" and len(t.shape) == 2]
    words = [t for t in tables if any(mark in t.name for mark in ("embed_tokens", "word_embeddings", "wte", "shared"))]
    return (words or tables)[0].shape[0] if tables else None


def _pair(first: str, one: Words, name: str, other: Words) -> Iterator[Finding]:
    moved = [t for t, i in other.ids.items() if one.ids.get(t, i) != i]
    extra = [t for t in other.ids if t not in one.ids]
    lacking = [t for t in one.ids if t not in other.ids]
    if moved or (extra and lacking):
        example = (moved or extra)[0]
        yield Finding(
            "vocabulary",
            "blocks",
            name,
            f"rows of the embedding mean other tokens in {name} than in {first}: {len(moved):,} tokens have another "
            f"number, {len(extra):,} are only in {name}, {len(lacking):,} only in {first} (for example {example!r}).",
            "Align the vocabularies by token with `tokenizer: union` or `base` in the recipe.",
        )
    elif extra or lacking:
        owner, tokens = (name, extra) if extra else (first, lacking)
        yield Finding(
            "vocabulary",
            "warns",
            name,
            f"{owner} knows {len(tokens):,} more tokens, such as {tokens[0]!r}.",
            "Their rows are random in the other model; `tokenizer: union` gives them this model's.",
        )
    for key in sorted({*one.special, *other.special}):
        if one.special.get(key) != other.special.get(key):
            yield Finding(
                "vocabulary",
                "warns",
                name,
                f"{key} is {other.special.get(key)!r} in {name} and {one.special.get(key)!r} in {first}.",
                f"The output gets the tokenizer of {first}, or that of `files_from`.",
            )
    if one.template != other.template:
        if one.template and other.template:
            says = f"{name} has another chat template than {first}"
        else:
            owner, other_name = (name, first) if other.template else (first, name)
            says = f"{owner} has a chat template, {other_name} has none"
        remedy = "Name the model whose files the output should get in `files_from`."
        yield Finding("template", "warns", name, f"{says}.", remedy)
