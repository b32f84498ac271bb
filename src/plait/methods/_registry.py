"""Find methods by name: the modules of this package, and plug-ins through the entry point group `plait.methods`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, TypeAlias

from plait.errors import PlaitError, UnknownMethodError, suggest
from plait.methods._contract import Combiner, Method, Modifier, Sparsifier

__all__ = ["Part", "compositions", "find", "find_composition", "find_presets", "methods"]

GROUP = "plait.methods"
_KINDS = (Combiner, Sparsifier, Modifier)

#: a step of a composition: a method's name, or its name and the values that take the place of its defaults there
Part: TypeAlias = str | tuple[str, Mapping[str, Any]]


def _defined_in(module: ModuleType) -> list[type[Method]]:
    found = (getattr(module, name) for name in getattr(module, "__all__", ()))
    return [c for c in found if isinstance(c, type) and issubclass(c, Method) and c not in _KINDS and c.name]


@cache
def _modules() -> tuple[ModuleType, ...]:
    import plait.methods as package

    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_"))
    return tuple(importlib.import_module(f"{package.__name__}.{name}") for name in names)


@cache
def methods() -> Mapping[str, type[Method]]:
    """Every method that is installed, by name.

    Raises:
        PlaitError: if two of them have one name, or a plug-in is not a method.
    """
    found: dict[str, type[Method]] = {}
    for module in _modules():
        for cls in _defined_in(module):
            found[cls.name] = cls
    for point in entry_points(group=GROUP):
        cls = point.load()
        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise PlaitError(f"the entry point {point.name!r} ({point.value}) is not a plait method class.")
        if cls.name in found and found[cls.name] is not cls:
            other = found[cls.name].__module__
            raise PlaitError(f"two methods are named {cls.name!r}: one in {other}, one in {point.value}.")
        found[cls.name] = cls
    return dict(sorted(found.items()))


@cache
def compositions() -> Mapping[str, tuple[Part, ...]]:
    """Names of the field for a sequence of methods: `dare_ties` is `dare` in front of `ties`."""
    found: dict[str, tuple[Part, ...]] = {}
    for module in _modules():
        found |= getattr(module, "COMPOSITIONS", {})
    return found


def find(name: str) -> type[Method]:
    """Return the method of that name.

    Raises:
        UnknownMethodError: naming the closest known method.
    """
    known = methods()
    if name in compositions():
        steps = ", ".join(find_composition(name))
        raise UnknownMethodError(
            f"{name!r} stands for a whole chain, [{steps}], and takes no parameters as one step; write "
            f"`method: {name}` with `parameters:`, or the steps themselves."
        )
    if name not in known:
        everything = [*known, *compositions()]
        raise UnknownMethodError(
            f"unknown method {name!r}.{suggest(name, everything)} `plait methods` explains them all: "
            f"{', '.join(sorted(known))}."
        )
    return known[name]


def find_composition(name: str) -> tuple[str, ...]:
    """Return the steps that a name stands for: itself, or the parts of a composition."""
    return tuple(part if isinstance(part, str) else part[0] for part in compositions().get(name, (name,)))


def find_presets(name: str) -> tuple[Mapping[str, Any], ...]:
    """Return, for each step that a name stands for, the values that take the place of its defaults."""
    return tuple({} if isinstance(part, str) else part[1] for part in compositions().get(name, (name,)))
