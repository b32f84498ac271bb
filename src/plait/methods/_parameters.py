"""Hyper-parameters of a method, read from its signature: type, bounds, default, meaning."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

from plait.errors import RecipeError, suggest

__all__ = [
    "Bounds",
    "Density",
    "Doc",
    "Fixed",
    "Fraction",
    "NonNegative",
    "NonNegativeInt",
    "Parameter",
    "PerExpert",
    "PositiveInt",
    "Real",
    "check_value",
    "external",
    "internal",
    "parameters_of",
]


@dataclass(frozen=True)
class Bounds:
    """Closed or open interval that a number must lie in."""

    ge: float = -math.inf
    le: float = math.inf
    gt: float = -math.inf
    lt: float = math.inf

    def holds(self, value: float) -> bool:
        """Tell whether a finite value lies inside."""
        return abs(value) < 1e300 and self.ge <= value <= self.le and self.gt < value < self.lt

    def __str__(self) -> str:
        left = f"({self.gt:g}" if self.gt > self.ge else (f"[{self.ge:g}" if self.ge > -math.inf else "(-∞")
        right = f"{self.lt:g})" if self.lt < self.le else (f"{self.le:g}]" if self.le < math.inf else "∞)")
        return f"{left}, {right}"


@dataclass(frozen=True)
class Doc:
    """One line that says what a parameter means."""

    text: str


class PerExpert:
    """Marks a parameter that may differ between experts; a method sees a number or one number per expert."""


class Fixed:
    """Marks a parameter that is one value for the whole model: it cannot vary by depth, name or role."""


Real: TypeAlias = Annotated[float, Bounds()]
NonNegative: TypeAlias = Annotated[float, Bounds(ge=0)]
Fraction: TypeAlias = Annotated[float, Bounds(ge=0, le=1)]
Density: TypeAlias = Annotated[float, Bounds(gt=0, le=1)]
PositiveInt: TypeAlias = Annotated[int, Bounds(ge=1)]
NonNegativeInt: TypeAlias = Annotated[int, Bounds(ge=0)]


Kind: TypeAlias = Literal["float", "int", "bool", "choice", "str", "any"]


@dataclass(frozen=True)
class Parameter:
    """What the signature says about one hyper-parameter."""

    name: str
    kind: Kind
    default: Any
    bounds: Bounds
    choices: tuple[str, ...]
    doc: str
    per_expert: bool
    fixed: bool
    optional: bool

    @property
    def label(self) -> str:
        """The parameter's name as recipes spell it: `lambda`, not `lambda_`."""
        return external(self.name)


def external(name: str) -> str:
    """Spell a field name as recipes do: a trailing underscore only avoids a Python keyword."""
    return name.rstrip("_")


def internal(name: str, known: Mapping[str, Any]) -> str:
    """Find the field that a recipe's spelling names."""
    return name if name in known else f"{name}_" if f"{name}_" in known else name


def _unwrap(hint: Any) -> tuple[Any, list[Any]]:
    """Strip `Annotated` layers (also inside a union with None) and collect what they carry."""
    extras: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        extras += more
    return hint, extras


_KINDS: dict[Any, Kind] = {float: "float", int: "int", bool: "bool", str: "str"}


@cache
def parameters_of(cls: type) -> Mapping[str, Parameter]:
    """Read the hyper-parameters of a method class from its annotated fields."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found: dict[str, Parameter] = {}
    for field in dataclasses.fields(cls):
        hint, extras = _unwrap(hints[field.name])
        per_expert = any(e is PerExpert or isinstance(e, PerExpert) for e in extras)
        optional = False
        members = [a for a in get_args(hint) if a is not type(None)] if get_origin(hint) is not Literal else []
        if members:
            optional = type(None) in get_args(hint)
            scalars = [m for m in members if get_origin(m) is not tuple]
            if get_origin(hint) is not tuple and scalars:
                hint, more = _unwrap(scalars[0])
                extras += more
        choices = tuple(str(c) for c in get_args(hint)) if get_origin(hint) is Literal else ()
        kind: Kind = "choice" if choices else _KINDS.get(hint, "any")
        bounds = next((e for e in extras if isinstance(e, Bounds)), Bounds())
        doc = next((e.text for e in extras if isinstance(e, Doc)), "")
        default = field.default if field.default is not dataclasses.MISSING else None
        # the default first: `Literal` compares as a set, and typing may hand out another method's order of the words
        choices = tuple(sorted(choices, key=lambda choice: (choice != default, choice)))
        fixed = kind in ("choice", "bool", "str", "any") or any(e is Fixed or isinstance(e, Fixed) for e in extras)
        found[field.name] = Parameter(
            field.name, kind, default, bounds, choices, doc, per_expert, fixed and not per_expert, optional
        )
    return found


def check_value(owner: str, parameter: Parameter, value: Any) -> Any:
    """Return `value` as the parameter's type.

    Raises:
        RecipeError: if the value has another type or lies outside the bounds.
    """
    where = f"parameter {parameter.label!r} of {owner!r}"
    if value is None and (parameter.optional or parameter.default is None):
        return None
    match parameter.kind:
        case "any":
            return value
        case "choice":
            if not isinstance(value, str) or value not in parameter.choices:
                hint = suggest(str(value), parameter.choices)
                raise RecipeError(f"{where} is {value!r}; it must be one of {', '.join(parameter.choices)}.{hint}")
            return value
        case "bool":
            if not isinstance(value, bool):
                raise RecipeError(f"{where} is {value!r}; it must be true or false.")
            return value
        case "str":
            if not isinstance(value, str):
                raise RecipeError(f"{where} is {value!r}; it must be a string.")
            return value
        case "int" | "float":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RecipeError(f"{where} is {value!r}; it must be a number.")
            if parameter.kind == "int" and value != int(value):
                raise RecipeError(f"{where} is {value!r}; it must be a whole number.")
            if not parameter.bounds.holds(value):
                raise RecipeError(f"{where} is {value:g}; it must lie in {parameter.bounds}.")
            return int(value) if parameter.kind == "int" else float(value)
