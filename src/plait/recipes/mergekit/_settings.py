"""mergekit's parameter values: scalars, gradients and filters of several scopes, turned into plait's.

mergekit takes the first filter whose text is part of a tensor's name; in plait the last rule that picks a tensor wins.
A gradient of mergekit runs over the layers of its slice, and tensors outside the layers get its first value; in plait
a list runs over depth, and what comes behind the layers is at depth 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from plait.errors import RecipeError
from plait.recipes._yaml import Path
from plait.recipes.mergekit._read import Reader

__all__ = ["EVERY_LAYER", "Entry", "constant", "entries_of", "plain"]

#: (text that the name must hold, or None; a scalar or a list of points)
Entry: TypeAlias = tuple[str | None, Any]

#: a range that holds the layers of any model, and nothing outside the layers
EVERY_LAYER = [0, 9999]

_TRUE, _FALSE = ("yes", "on", "true", "y"), ("no", "off", "false", "n")


def entries_of(
    reader: Reader, settings: Sequence[tuple[Any, Path]], kind: type, default: Any, what: str
) -> list[Entry]:
    """Return what applies to a tensor, first match first: the scopes' settings in order, and the default at the end.

    Args:
        reader: for errors.
        settings: the settings of each scope that has one, the closest scope first, with their places.
        kind: float, int or bool.
        default: mergekit's own, or None where it demands a value.
        what: how errors call the parameter.
    """
    found: list[Entry] = []
    for setting, path in settings:
        if setting is None or setting == []:
            continue
        for text, value in _conditions(reader, setting, path):
            typed = [_typed(reader, v, kind, path, what) for v in value] if isinstance(value, list) else None
            scalar = _typed(reader, value, kind, path, what) if typed is None else None
            found.append((text, scalar if typed is None else typed[0] if len(set(typed)) == 1 else typed))
            if text is None:
                return found
    if default is not None:
        found.append((None, default))
    return found


def _conditions(reader: Reader, setting: Any, path: Path) -> list[Entry]:
    items = setting if isinstance(setting, list) else [setting]
    if not any(isinstance(item, Mapping) for item in items):
        return [(None, setting)]
    found: list[Entry] = []
    for index, item in enumerate(items):
        place = (*path, index) if isinstance(setting, list) else path
        if not isinstance(item, Mapping):
            raise reader.fail(place, f"{item!r} stands among filters; each item needs a value.")
        reader.keys(item, ("filter", "value"), place)
        if item.get("value") is None or item["value"] == []:
            raise reader.fail(place, "a filter without a value.")
        text = item.get("filter")
        if not (text is None or isinstance(text, str)):
            raise reader.fail(place, f"the filter {text!r} is no text.")
        found.append((None if text in (None, "", "*") else text, item["value"]))
    return found


def _typed(reader: Reader, value: Any, kind: type, path: Path, what: str) -> Any:
    """The value as mergekit would take it: words of YAML 1.1 for booleans, numbers in quotes, true for 1."""
    if kind is bool:
        word = str(int(value) if value in (0, 1) else value).lower()
        if isinstance(value, bool) or word in (*_TRUE, *_FALSE, "0", "1"):
            return word in (*_TRUE, "1")
        raise reader.fail(path, f"{what} is {value!r}; it must be true or false.")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise reader.fail(path, f"{what} is {str(value)[:40]!r}; it must be a number.")
    if kind is int:
        if number != int(number):
            raise reader.fail(path, f"{what} is {value!r}; it must be a whole number.")
        return int(number)
    return value if isinstance(value, int) and not isinstance(value, bool) else number


def plain(entries: Sequence[Entry], layers: int | None, change: Callable[[Any], Any] | None = None) -> Any:
    """Write entries as a value of plait's: a scalar, a list over depth, or rules.

    Args:
        entries: first match first.
        layers: number of layers, where the recipe says it.
        change: applied to every number.
    """
    rules: list[dict[str, Any]] = []
    for text, value in reversed(entries):
        points = value if isinstance(value, list) else [value]
        points = [change(p) for p in points] if change else list(points)
        picks: dict[str, Any] = {} if text is None else {"match": f"*{_literal(text)}*"}
        optional = {} if text is None else {"optional": True}
        if len(points) == 1 or layers == 1:
            rules.append({**picks, "value": points[0], **optional})
            if len(points) > 1:  # a single layer stands at the end of a gradient, all else at its start
                rules.append({**picks, "layers": EVERY_LAYER, "value": points[-1], "optional": True})
        elif points[0] == points[-1]:
            rules.append({**picks, "value": points, **optional})
        else:
            rules.append({**picks, "value": points[0], **optional})
            rules.append({**picks, "layers": EVERY_LAYER, "value": points, "optional": True})
    return rules[0]["value"] if len(rules) == 1 and set(rules[0]) == {"value"} else rules


def constant(reader: Reader, entries: Sequence[Entry], path: Path, what: str) -> Any:
    """The one value of a parameter that plait cannot vary within a model.

    Raises:
        RecipeError: if it varies.
    """
    values = {repr(v): v for _, value in entries for v in (value if isinstance(value, list) else [value])}
    if len(values) != 1:
        raise RecipeError(
            f"{reader.document.where(path)}{what} takes {len(values)} values over the model; in plait it is one for "
            "the whole model. Nest two recipes, or give one value."
        )
    return next(iter(values.values()))


def _literal(text: str) -> str:
    """Text as a glob pattern that matches just it."""
    return re.sub(r"([*?\[])", r"[\1]", text)
