"""The recipe's `tokenizer` and `chat_template`: models with one vocabulary, and the files that go with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from plait.alignment import (
    Tokenizer,
    TokenRow,
    align_vocabularies,
    pick_template,
    plan_vocabulary,
    read_tokenizer,
    renumber_files,
    transplant,
)
from plait.checkpoints import Checkpoint, LazyTensor
from plait.errors import RecipeError
from plait.recipes import Source, Vocabulary

__all__ = ["Spoken", "align_tokens"]


@dataclass(frozen=True)
class Spoken:
    """Models whose rows mean the same tokens.

    Attributes:
        base: the base, or None.
        models: the experts.
        files: small files of the result in the place of the donor's.
        notes: what was decided.
        stamp: a hash of all tokenizers: what must be equal for a half-finished output to be continued.
    """

    base: Checkpoint | None
    models: dict[str, Checkpoint]
    files: dict[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stamp: str = ""


def align_tokens(
    source: Source,
    base: Checkpoint | None,
    models: Mapping[str, Checkpoint],
    open_model: Callable[[str, str], Checkpoint],
) -> Spoken:
    """Do what the recipe says of the vocabulary; without a word on it, return the models as they are.

    Raises:
        RecipeError: for names that are no models, and for models without a tokenizer.
    """
    recipe = source.recipe
    every = {**({"base": base} if base is not None else {}), **models}
    donor = recipe.files_from or next(iter(every))
    if donor not in every:
        return Spoken(base, dict(models))  # the engine says so
    files: dict[str, bytes] = {}
    notes: list[str] = []
    stamp = ""
    tokenizer = read_tokenizer(every[donor], donor)
    try:
        if recipe.tokenizer is not None and recipe.tokenizer.transplant is not None:
            _refuse_changes(every)
            given = open_model(recipe.tokenizer.transplant, "tokenizer")
            every, tokenizer, more, note, stamp = _transplanted(every, donor, given, recipe.tokenizer)
            files |= more
            notes.append(note)
        elif recipe.tokenizer is not None:
            _refuse_changes(every)
            asked = recipe.tokenizer
            rules = {
                token: TokenRow(rule.from_, rule.token, rule.id, rule.value, rule.scale, rule.force)
                for token, rule in asked.tokens.items()
            }
            first = asked.fill_from or ("base" if base is not None else None)
            if first is not None and first not in every:
                raise RecipeError(f"tokenizer: fill_from names {first!r}; models are {', '.join(every)}.")
            vocabulary = plan_vocabulary(every, asked.source, donor, list(rules), asked.pad_to_multiple_of)
            owner = vocabulary.tokenizer.owner
            padding = owner if asked.pad_to_multiple_of is None else None
            every = align_vocabularies(every, vocabulary, rules=rules, fill_from=first, padding_from=padding)
            files |= vocabulary.tokenizer.files
            before, after = vocabulary.tokenizers[donor], vocabulary.tokenizer
            tokenizer = after
            every[donor].config, more = renumber_files(every[donor], before, after)
            files |= more
            stamp = _stamp(vocabulary.tokenizers.values())
            notes += [_summary(after.size, vocabulary.rows, asked.source, owner), *vocabulary.notes]
        if recipe.chat_template is not None:
            templates = {name: t.template if (t := read_tokenizer(c, name)) else None for name, c in every.items()}
            chosen = pick_template(recipe.chat_template, templates, donor)
            if chosen is None:
                notes.append("chat_template: auto finds none in any model.")
            elif tokenizer is None:
                raise RecipeError(f"chat_template: {donor} has no tokenizer that a template could belong to.")
            else:
                files |= tokenizer.with_template(chosen)
    except RecipeError as error:
        place = source.document.where(("tokenizer" if str(error).startswith("tokenizer") else "chat_template",))
        raise RecipeError(f"{place}{error}") from None
    return Spoken(every.pop("base", None) if base is not None else None, every, files, tuple(notes), stamp)


def _stamp(tokenizers: Iterable[Tokenizer]) -> str:
    return hashlib.sha256(json.dumps([sorted(t.ids.items()) for t in tokenizers]).encode()).hexdigest()


def _transplanted(
    every: Mapping[str, Checkpoint], first: str, given: Checkpoint, asked: Vocabulary
) -> tuple[dict[str, Checkpoint], Tokenizer, dict[str, bytes], str, str]:
    """Every model with the donor's tokens; the donor's tokenizer, the files that change, a note and a stamp."""
    theirs = read_tokenizer(given, "tokenizer")
    if theirs is None:
        raise RecipeError(f"tokenizer: {given.label} has no tokenizer.json or vocab.json to take tokens from.")
    rows = -(-theirs.size // (asked.pad_to_multiple_of or 1)) * (asked.pad_to_multiple_of or 1)
    found: dict[str, Checkpoint] = {}
    own: dict[str, Tokenizer] = {}
    shared = 0
    for name, checkpoint in every.items():
        tokenizer = read_tokenizer(checkpoint, name)
        if tokenizer is None:
            raise RecipeError(f"tokenizer: {name} ({checkpoint.label}) has no tokenizer.json or vocab.json beside it.")
        own[name] = tokenizer
        found[name], count = transplant(checkpoint, tokenizer, given, theirs, rows, asked.by, asked.k)
        shared = count if name == first else shared
    config, more = renumber_files(found[first], own[first], theirs)
    special = {k: v for k, v in (given.config or {}).items() if k.endswith("_token_id")}
    if config is not None:
        found[first].config = {**config, **special}
    for path, data in more.items():
        content = json.loads(data)
        more[path] = (
            json.dumps({**content, **{k: v for k, v in special.items() if k in content}}, indent=2) + "\n"
        ).encode()
    note = (
        f"{first} gets the tokenizer of {given.label}: {shared:,} tokens keep their rows, "
        f"{theirs.size - shared:,} get new ones ({asked.by})."
    )
    return found, theirs, {**theirs.files, **more}, note, _stamp([*own.values(), theirs])


def _summary(tokens: int, rows: int, source: str, owner: str) -> str:
    padding = f" and {rows - tokens:,} rows of padding" if rows > tokens else ""
    return f"the vocabulary ({source}; tokenizer of {owner}) has {tokens:,} tokens{padding}."


def _refuse_changes(every: Mapping[str, Checkpoint]) -> None:
    for name, checkpoint in every.items():
        tensors: list[LazyTensor] = list(checkpoint.tensors.values())
        if any(getattr(tensor, "space", "weight") != "weight" for tensor in tensors):
            raise RecipeError(
                f"tokenizer: {name} is an adapter's change, which has no vocabulary of its own; merge it into its "
                "model first."
            )
