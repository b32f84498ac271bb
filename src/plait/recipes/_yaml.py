"""Strict YAML: 1.2 numbers and booleans, no duplicate keys, and the line of every value."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from plait.errors import RecipeError

__all__ = ["Document", "Path", "read_documents", "read_yaml"]

Path: TypeAlias = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
_MAX_DEPTH = 40
_MAX_VALUES = 100_000


@dataclass(frozen=True)
class Document:
    """Plain data with the line on which each value stands."""

    data: Any
    source: str
    lines: dict[Path, int] = field(default_factory=dict)

    def where(self, path: Path) -> str:
        """Return `file, line N: ` for the closest known place, or just the file."""
        for end in range(len(path), -1, -1):
            line = self.lines.get(path[:end])
            if line is not None:
                return f"{self.source}, line {line}: "
        return f"{self.source}: " if self.source else ""


def read_yaml(text: str, source: str) -> Document:
    """Parse one document.

    Raises:
        RecipeError: for a syntax error, a duplicate key, an unsupported tag or a second document, with its line.
    """
    documents = read_documents(text, source)
    if len(documents) > 1:
        raise RecipeError(f"{documents[1].where(())}one YAML document was expected; here a second one begins.")
    return documents[0]


def read_documents(text: str, source: str) -> list[Document]:
    """Parse all documents of a text, at least one.

    Raises:
        RecipeError: for a syntax error, a duplicate key or an unsupported tag, with its line.
    """
    try:
        roots = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except RecursionError:
        raise RecipeError(f"{source} is nested too deeply to be a recipe.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{source}{place}: this is not YAML: {problem}.") from None
    # an empty document between two others is nothing; one alone is an error
    roots = [node for node in roots if not (isinstance(node, yaml.ScalarNode) and not node.value)]
    if not roots:
        raise RecipeError(f"{source} is empty; a recipe needs at least a method and models.")
    return [_read(root, source) for root in roots]


def _read(root: yaml.Node, source: str) -> Document:
    document = Document(None, source)
    try:
        data = _build(root, (), document)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{source} holds a value that cannot be read: {error}.") from None
    return Document(data, source, document.lines)


def _build(node: yaml.Node, path: Path, document: Document) -> Any:
    if len(path) > _MAX_DEPTH:
        raise RecipeError(f"{document.where(path)}nested more than {_MAX_DEPTH} levels deep.")
    if len(document.lines) > _MAX_VALUES:
        raise RecipeError(f"{document.source} holds more than {_MAX_VALUES:,} values once its aliases are followed.")
    line = node.start_mark.line + 1
    document.lines.setdefault(path, line)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                raise RecipeError(f"{document.source}, line {key_node.start_mark.line + 1}: keys must be plain words.")
            if key in result:
                raise RecipeError(
                    f"{document.source}, line {key_node.start_mark.line + 1}: the key {key!r} stands twice."
                )
            document.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = _build(value_node, (*path, key), document)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), document) for i, item in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    if node.style in ("'", '"', "|", ">"):  # pyrefly: ignore[missing-attribute]
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    low = text.lower()
    return float(_SPECIAL[low]) if low in _SPECIAL else text
