"""One vocabulary for several models: which tokens it has, and where each model's row of a token comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.alignment._rows import PADDING, ZERO, AlignedTable, Mix
from plait.alignment._tokenizer import Tokenizer, read_tokenizer
from plait.architectures import token_tables
from plait.checkpoints import Checkpoint, LazyTensor
from plait.errors import IncompatibleModelsError, RecipeError, suggest

__all__ = ["TokenRow", "Vocabulary", "align_vocabularies", "plan_vocabulary", "renumber_files", "with_tables"]


@dataclass(frozen=True)
class TokenRow:
    """Where the rows of one token come from, in models that lack it, or in all.

    Attributes:
        model: whose row.
        token: the row of another token of that model; by default of the token itself.
        number: the row with this number.
        value: `zero`, or `mean` of each model's own tokens, instead of a model's row.
        scale: factor on the row.
        force: also in models that have the token.
    """

    model: str | None = None
    token: str | None = None
    number: int | None = None
    value: str | None = None
    scale: float = 1.0
    force: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of the result.

    Attributes:
        tokenizer: its tokenizer.
        rows: rows of its tables, padding included.
        tokenizers: those of the models.
        notes: what was decided.
    """

    tokenizer: Tokenizer
    rows: int
    tokenizers: Mapping[str, Tokenizer]
    notes: tuple[str, ...] = ()


def plan_vocabulary(
    models: Mapping[str, Checkpoint],
    source: str,
    donor: str,
    tokens: Sequence[str] = (),
    multiple: int | None = None,
) -> Vocabulary:
    """Choose the tokens of the result.

    Args:
        models: name → model; each needs its tokenizer beside it.
        source: `union`, `base` (the donor's vocabulary) or a model's name.
        donor: the model whose config and tokenizer the result has, unless another is named.
        tokens: further tokens.
        multiple: the number of rows is rounded up to a multiple of this. Without it, the rows that the source has
            beyond its tokens stay.

    Raises:
        RecipeError: for an unknown source, and for models without a tokenizer.
    """
    tokenizers: dict[str, Tokenizer] = {}
    for name, checkpoint in models.items():
        found = read_tokenizer(checkpoint, name)
        if found is None:
            raise RecipeError(
                f"{name} ({checkpoint.label}) has no tokenizer.json or vocab.json beside it, so that its tokens cannot "
                "be aligned by their texts; put its tokenizer there."
            )
        tokenizers[name] = found
    named = donor if source in ("union", "base") else source
    if named not in tokenizers:
        hint = suggest(named, [*tokenizers, "union", "base"])
        known = ", ".join(tokenizers)
        raise RecipeError(
            f"tokenizer: source is {source!r}, which is no model here.{hint} Say union, base, or {known}."
        )
    notes: list[str] = []
    chosen = tokenizers[named]
    if source == "union":
        ordinary, added = _others(tokenizers, named, models)
        chosen = chosen.with_tokens([*(_entry(text) for text in ordinary), *added])
        if ordinary:
            notes.append(
                f"{len(ordinary)} ordinary tokens of other models, such as {ordinary[0]!r}, are added to the tokenizer "
                f"of {named} as whole words: it finds them before it splits a text."
            )
    chosen = chosen.with_tokens(_entry(text) for text in tokens)
    rows = chosen.size
    if multiple is not None:
        rows = -(-rows // multiple) * multiple
    else:
        rows = max(rows, _table_rows(models[named]))
    return Vocabulary(chosen, rows, tokenizers, tuple(notes))


def _others(
    tokenizers: Mapping[str, Tokenizer], first: str, models: Mapping[str, Checkpoint]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Tokens that the first model lacks, in the order of the models: ordinary ones, and the entries of added ones."""
    ordinary: dict[str, None] = {}
    added: dict[str, dict[str, Any]] = {}
    for name, tokenizer in tokenizers.items():
        rows = _table_rows(models[name])
        own = {str(e["content"]): e for e in tokenizer.added}
        for text, number in sorted(tokenizer.ids.items(), key=lambda item: item[1]):
            if text in tokenizers[first].ids or number >= rows:
                continue
            if text in own:
                added.setdefault(text, own[text])
            else:
                ordinary[text] = None
    return [text for text in ordinary if text not in added], list(added.values())


def _entry(text: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"content": text, **flags}


def _table_rows(checkpoint: Checkpoint) -> int:
    tables = token_tables({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    if not tables:
        raise IncompatibleModelsError(
            f"{checkpoint.label} has no table of token embeddings that plait knows by its name; leave out `tokenizer`."
        )
    return max(checkpoint.tensors[name].shape[0] for name in tables)


def align_vocabularies(
    models: Mapping[str, Checkpoint],
    vocabulary: Vocabulary,
    *,
    rules: Mapping[str, TokenRow] | None = None,
    fill_from: str | None = None,
    padding_from: str | None = None,
) -> dict[str, Checkpoint]:
    """See every model with the rows of one vocabulary.

    A model's own row stands for each of its tokens. A token that it lacks gets the row its rule says; else that of the
    only model that has it; else that of `fill_from`, if it has the token; else the mean over the models that have it.
    Rows without a token get the rows of `padding_from`, or the mean over the tokens of the result.

    Raises:
        RecipeError: for rules that name a model or token that is not there.
    """
    rules = rules or {}
    for token, rule in rules.items():
        _check(token, rule, models, vocabulary)
    names = list(models)
    texts: list[str | None] = [None] * vocabulary.rows
    for text, number in vocabulary.tokenizer.ids.items():
        texts[number] = text
    tables = dict.fromkeys(
        name
        for checkpoint in models.values()
        for name in token_tables({n: t.shape for n, t in checkpoint.tensors.items()})
    )
    replaced: dict[str, dict[str, LazyTensor]] = {name: {} for name in models}
    for table in tables:
        found = {i: t for i, name in enumerate(names) if (t := models[name].find(table)) is not None}
        numbers = {
            i: {text: n for text, n in vocabulary.tokenizers[names[i]].ids.items() if n < tensor.shape[0]}
            for i, tensor in found.items()
        }
        pads = names.index(padding_from) if padding_from in names else -1
        fills = {text: _fill(text, rules.get(text), names, numbers, fill_from) for text in texts if text is not None}
        for own in found:
            if table not in models[names[own]].tensors:
                continue  # tied: it is its embedding
            rows: list[tuple[int, int] | Mix] = []
            for number, text in enumerate(texts):
                if text is None:
                    has = pads in found and number < found[pads].shape[0]
                    rows.append((pads, number) if has else PADDING)
                elif text in numbers[own] and not (text in rules and rules[text].force):
                    rows.append((own, numbers[own][text]))
                else:
                    rows.append(fills[text])
            if rows == [(own, i) for i in range(found[own].shape[0])]:
                continue  # nothing moves
            tokens = list(numbers[own].values())
            replaced[names[own]][table] = AlignedTable(table, own, found, rows, tokens)
    return {name: with_tables(models[name], replaced[name], vocabulary.rows) for name in names}


def _fill(
    text: str, rule: TokenRow | None, names: Sequence[str], numbers: Mapping[int, Mapping[str, int]], first: str | None
) -> tuple[int, int] | Mix:
    """The row of a token in models that lack it."""
    if rule is not None:
        if rule.value is not None:
            return ZERO if rule.value == "zero" else Mix(mean=rule.scale)
        assert rule.model is not None
        model = names.index(rule.model)
        number = rule.number if rule.number is not None else numbers[model].get(rule.token or text, -1)
        return (model, number) if rule.scale == 1.0 else Mix(((model, number, rule.scale),))
    owners = [i for i in numbers if text in numbers[i]]
    if len(owners) == 1:
        return owners[0], numbers[owners[0]][text]
    base = names.index(first) if first in names else -1
    if base in owners:
        return base, numbers[base][text]
    return Mix(tuple((i, numbers[i][text], 1.0 / len(owners)) for i in owners))


def _check(token: str, rule: TokenRow, models: Mapping[str, Checkpoint], vocabulary: Vocabulary) -> None:
    if rule.value is not None:
        return
    if rule.model not in models:
        hint = suggest(str(rule.model), models)
        raise RecipeError(
            f"tokenizer: the row of {token!r} is taken from {rule.model!r}, which is no model here.{hint}"
        )
    rows, ids = _table_rows(models[rule.model]), vocabulary.tokenizers[rule.model].ids
    number = rule.number if rule.number is not None else ids.get(rule.token or token, -1)
    if not 0 <= number < rows:
        what = f"row {rule.number}" if rule.number is not None else repr(rule.token or token)
        raise RecipeError(f"tokenizer: {rule.model} has no {what}, from which the row of {token!r} is to be taken.")


def with_tables(checkpoint: Checkpoint, tables: Mapping[str, LazyTensor], rows: int) -> Checkpoint:
    """The same model with other tables, and with their number of rows in its config."""
    config = dict(checkpoint.config) if checkpoint.config is not None else None
    if config is not None:
        for section in (config, config.get("text_config")):
            if isinstance(section, dict) and isinstance(section.get("vocab_size"), int):
                changed = {**section, "vocab_size": rows}
                if section is config:
                    config = changed
                else:
                    config = {**config, "text_config": changed}
    tensors = {name: tables.get(name, tensor) for name, tensor in checkpoint.tensors.items()}
    return Checkpoint(
        checkpoint.label,
        tensors,
        config=config,
        folder=checkpoint.folder,
        hub_id=checkpoint.hub_id,
        revision=checkpoint.revision,
        stamp=checkpoint.stamp,
        files=checkpoint.files,
    )


def renumber_files(
    donor: Checkpoint, before: Tokenizer, after: Tokenizer
) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    """The donor's config and generation_config.json with the numbers that its tokens have in another vocabulary."""
    config = None if donor.config is None else _renumbered(donor.config, before, after)
    if config is not None and isinstance(config.get("text_config"), Mapping):
        config["text_config"] = _renumbered(config["text_config"], before, after)
    files: dict[str, bytes] = {}
    path = donor.folder / "generation_config.json" if donor.folder is not None else None
    if path is not None and path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        files["generation_config.json"] = (json.dumps(_renumbered(content, before, after), indent=2) + "\n").encode()
    return config, files


def _renumbered(content: Mapping[str, Any], before: Tokenizer, after: Tokenizer) -> dict[str, Any]:
    """Entries `…_token_id` mean the same tokens; those whose token is lost are left out."""
    texts = {number: text for text, number in before.ids.items()}
    changed: dict[str, Any] = {}
    for key, value in content.items():
        if not key.endswith("_token_id") or value is None:
            changed[key] = value
            continue
        listed = value if isinstance(value, list) else [value]
        moved = [n if n not in texts else after.ids.get(texts[n]) for n in listed]
        kept = [n for n in moved if n is not None]
        if kept:
            changed[key] = kept if isinstance(value, list) else kept[0]
    return changed
