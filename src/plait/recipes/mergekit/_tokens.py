"""mergekit's `tokenizer`, `tokenizer_source` and `chat_template`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait.errors import suggest
from plait.recipes._yaml import Path
from plait.recipes.mergekit._read import ModelName, Reader

__all__ = ["chat_template", "vocabulary"]

_FORMATS = ("chatml", "llama3", "mistral", "alpaca")


def vocabulary(reader: Reader, given: Any, names: Mapping[ModelName, str], base: ModelName | None) -> dict[str, Any]:
    """The recipe's `tokenizer`.

    Args:
        reader: for errors and notes.
        given: mergekit's `tokenizer`.
        names: what the recipe calls the models.
        base: mergekit's base_model.
    """
    at: Path = ("tokenizer",)
    data = reader.mapping(given, at, "tokenizer")
    reader.keys(data, ("source", "tokens", "pad_to_multiple_of"), at)
    found: dict[str, Any] = {"source": _source(reader, data.get("source", "union"), names, base)}
    tokens = reader.mapping(data.get("tokens"), (*at, "tokens"), "tokens")
    rules = {token: _rule(reader, token, rule, names) for token, rule in tokens.items()}
    if rules:
        found["tokens"] = rules
    if base in names and names[base] != "base":
        found["fill_from"] = names[base]
    multiple = data.get("pad_to_multiple_of")
    if multiple is None:
        reader.note("rows of padding beyond the last token are cut off, as mergekit does.")
        multiple = 1
    if type(multiple) is not int or multiple < 1:
        raise reader.fail((*at, "pad_to_multiple_of"), f"pad_to_multiple_of is {multiple!r}; it must be 1 or more.")
    reader.note(
        "tokens that the base lacks are numbered in the order of the models; in mergekit their order is random."
    )
    return {**found, "pad_to_multiple_of": multiple}


def _source(reader: Reader, value: Any, names: Mapping[ModelName, str], base: ModelName | None) -> str:
    if value == "base" and base is None:
        reader.note("tokenizer: base without a base_model is the first model's; in mergekit it is that of any.")
    if value in ("union", "base"):
        return str(value)
    return _named(reader, value, names, ("tokenizer", "source"))


def _named(reader: Reader, value: Any, names: Mapping[ModelName, str], path: Path) -> str:
    model = reader.model(value, path)
    if model not in names:
        listed = ", ".join(str(name) for name in names)
        raise reader.fail(path, f"the tokenizer names {model}, which is not merged; the models are {listed}.")
    return names[model]


def _rule(reader: Reader, token: str, given: Any, names: Mapping[ModelName, str]) -> dict[str, Any]:
    at: Path = ("tokenizer", "tokens", token)
    data = reader.mapping(given, at, f"the token {token!r}")
    reader.keys(data, ("source", "force"), at)
    source = data.get("source")
    rule: dict[str, Any] = {}
    if isinstance(source, Mapping) and "kind" in source:
        kind = source["kind"]
        if kind not in ("zero", "model_token"):
            raise reader.fail(
                at, f"the source of {token!r} is of the kind {kind!r}; mergekit has zero and model_token."
            )
        known = ("kind",) if kind == "zero" else ("kind", "model", "token", "token_id")
        reader.keys(source, known, (*at, "source"))
        if kind == "zero":
            rule["value"] = "zero"
        else:
            rule["from"] = _named(reader, source.get("model"), names, (*at, "source"))
            given_token, number = source.get("token"), source.get("token_id")
            if (given_token is None) == (number is None):
                raise reader.fail((*at, "source"), f"the row of {token!r} needs token or token_id, one of them.")
            rule |= {"id": number} if given_token is None else {"token": str(given_token)}
    elif source is None:
        raise reader.fail(at, f"the token {token!r} has no source.")
    else:
        rule["from"] = _named(reader, source, names, (*at, "source"))
    return {**rule, "force": True} if data.get("force") else rule


def chat_template(reader: Reader, given: str) -> str:
    """The recipe's `chat_template`."""
    if given == "auto" or "{" in given:
        return given
    if given not in _FORMATS:
        hint = suggest(given, ("auto", *_FORMATS))
        raise reader.fail(
            ("chat_template",),
            f"plait has no chat template {given!r}.{hint} It has {', '.join(_FORMATS)}; or paste the template itself.",
        )
    reader.note(f"the chat template {given} is plait's own text of that format.")
    return given
