"""Read a recipe from a file, a string or a dictionary, with errors that name the line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from plait.errors import RecipeError, suggest
from plait.recipes._schema import Expert, Recipe, Selector, Slice, TokenRule, Vocabulary
from plait.recipes._yaml import Document, read_documents
from plait.recipes.mergekit import import_documents, is_mergekit

__all__ = ["Source", "describe", "load_recipe"]


@dataclass(frozen=True)
class Source:
    """A recipe with where it came from.

    Attributes:
        recipe: what is asked for.
        document: the text it was read from, for the lines that errors name.
        folder: where relative paths start.
        notes: what an import could not carry over exactly, one sentence each.
    """

    recipe: Recipe
    document: Document = field(default_factory=lambda: Document(None, ""))
    folder: Path = field(default_factory=Path.cwd)
    notes: tuple[str, ...] = ()


def load_recipe(given: str | Path | Mapping[str, Any] | Recipe | Source) -> Source:
    """Return a checked recipe.

    Args:
        given: a YAML file's path, or the recipe itself as a mapping.

    Raises:
        RecipeError: naming the file, the line, the key and the closest known key.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, Recipe):
        return Source(given)
    if isinstance(given, Mapping):
        documents = [Document(dict(given), "")]
        return _imported(documents) if is_mergekit(documents) else Source(_validate(documents[0]))
    path = Path(given)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}.") from None
    documents = read_documents(text, str(path))
    if is_mergekit(documents):
        return _imported(documents)
    if len(documents) > 1:
        raise RecipeError(f"{documents[1].where(())}a recipe is one YAML document; here a second one begins.")
    return Source(_validate(documents[0]), documents[0], path.resolve().parent)


def _imported(documents: Sequence[Document]) -> Source:
    """A mergekit recipe as one of plait's; its relative paths start at the current folder, as mergekit's do."""
    found = import_documents(documents)
    document = Document(found.recipe, documents[0].source)
    return Source(_validate(document), document, notes=found.notes)


def _validate(document: Document) -> Recipe:
    if not isinstance(document.data, Mapping):
        raise RecipeError(f"{document.where(())}a recipe is a mapping with at least a method and models.")
    try:
        return Recipe.model_validate(document.data)
    except ValidationError as error:
        raise RecipeError(describe(error, Recipe, document)) from None


def describe(error: ValidationError, model: type[BaseModel], document: Document | None = None) -> str:
    """Turn pydantic's findings into one line each: where, what, and what was probably meant."""
    lines: list[str] = []
    problems = error.errors(include_url=False)
    # a union reports every member's failure: keep the most specific places only
    deepest = max((len(p["loc"]) for p in problems), default=0)
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    for problem in unknown or [p for p in problems if len(p["loc"]) == deepest] or problems:
        parts = tuple(p for p in problem["loc"] if not (isinstance(p, str) and _internal(p)))
        where = document.where(parts) if document else ""
        place = ".".join(str(p) for p in parts)
        if problem["type"] == "extra_forbidden":
            known = _known(model, parts)
            word = str(parts[-1]) if parts else ""
            lines.append(f"{where}unknown key {word!r}.{suggest(word, known)} Known keys: {', '.join(known)}.")
        elif problem["type"] == "missing":
            lines.append(f"{where}the key {place!r} is missing.")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{where}{place + ': ' if place else ''}{message[0].lower() + message[1:]}.")
    return "\n".join(dict.fromkeys(lines))


def _internal(part: str) -> bool:
    return part in ("Recipe", "str", "Expert", "int", "float", "bool") or "[" in part or "function-" in part


_OWNERS: dict[str, type[BaseModel]] = {
    "slices": Slice,
    "drop": Selector,
    "experts": Expert,
    "tokenizer": Vocabulary,
    "tokens": TokenRule,
}


def _known(model: type[BaseModel], parts: tuple[Any, ...]) -> list[str]:
    owner: type[BaseModel] = model
    for part in parts[:-1]:
        owner = _OWNERS.get(str(part), owner)
        if part in ("model", "base"):
            owner = Recipe
    return [info.alias or name for name, info in owner.model_fields.items()]
