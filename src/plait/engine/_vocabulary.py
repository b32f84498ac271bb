"""The recipe's `tokenizer` and `chat_template`: models with one vocabulary, and the files that go with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from plait.alignment import TokenRow, align_vocabularies, pick_template, plan_vocabulary, read_tokenizer, renumber_files
from plait.checkpoints import Checkpoint, LazyTensor
from plait.errors import RecipeError
from plait.recipes import Source

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


def align_tokens(source: Source, base: Checkpoint | None, models: Mapping[str, Checkpoint]) -> Spoken:
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
        if recipe.tokenizer is not None:
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
            words = {name: sorted(t.ids.items()) for name, t in vocabulary.tokenizers.items()}
            stamp = hashlib.sha256(json.dumps(words).encode()).hexdigest()
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
