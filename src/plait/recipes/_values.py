"""Numbers that may differ between tensors and experts: scalars, lists over depth, rules by name or role."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.architectures import Role
from plait.errors import RecipeError
from plait.recipes._schema import Selector, ValueRule

__all__ = ["MISSING", "ByExpert", "Constant", "Gradient", "Rules", "Value", "parse_value", "selects"]

MISSING = object()


def selects(selector: Selector, name: str, role: Role) -> bool:
    """Tell whether a selector picks a tensor."""
    patterns = [selector.match] if isinstance(selector.match, str) else selector.match
    if patterns is not None and not any(fnmatch.fnmatchcase(name, p) for p in patterns):
        return False
    roles = [selector.role] if isinstance(selector.role, str) else selector.role
    if roles is not None and role.kind not in roles:
        return False
    if selector.layers is not None and not (
        role.layer is not None and selector.layers[0] <= role.layer <= selector.layers[1]
    ):
        return False
    return selector.depth is None or selector.depth[0] <= role.depth <= selector.depth[1]


class Value:
    """A parameter's value as a function of the tensor."""

    def at(self, name: str, role: Role) -> Any:
        """Return the value for one tensor, or MISSING where the recipe says nothing about it."""
        raise NotImplementedError

    def leaves(self) -> Iterator[Any]:
        """Yield every constant that was written, for validation."""
        raise NotImplementedError

    @property
    def varies(self) -> bool:
        """Whether tensors may get different values."""
        return True

    def unused(self) -> list[str]:
        """Descriptions of rules that have matched no tensor so far."""
        return []


@dataclass(frozen=True)
class Constant(Value):
    """One value everywhere."""

    value: Any

    def at(self, name: str, role: Role) -> Any:
        return self.value

    def leaves(self) -> Iterator[Any]:
        yield self.value

    @property
    def varies(self) -> bool:
        return False


@dataclass(frozen=True)
class Gradient(Value):
    """Points spread evenly over depth, with straight lines between them."""

    points: tuple[float, ...]

    def at(self, name: str, role: Role) -> Any:
        position = role.depth * (len(self.points) - 1)
        left = min(int(position), len(self.points) - 2)
        share = position - left
        return self.points[left] * (1 - share) + self.points[left + 1] * share

    def leaves(self) -> Iterator[Any]:
        yield from self.points


@dataclass(frozen=True)
class Rules(Value):
    """Selectors with values; the last one that picks the tensor wins."""

    rules: tuple[tuple[Selector, Value], ...]
    hits: set[int] = field(default_factory=set, compare=False)

    def at(self, name: str, role: Role) -> Any:
        found: Any = MISSING
        for index, (selector, value) in enumerate(self.rules):
            if selects(selector, name, role):
                self.hits.add(index)
                found = value.at(name, role)
        return found

    def leaves(self) -> Iterator[Any]:
        for _, value in self.rules:
            yield from value.leaves()

    def unused(self) -> list[str]:
        return [
            str(selector.model_dump(exclude_none=True, exclude={"value", "optional"}))
            for index, (selector, _) in enumerate(self.rules)
            if index not in self.hits and not getattr(selector, "optional", False)
        ]


@dataclass(frozen=True)
class ByExpert(Value):
    """A value of its own for some or all experts, over a common one."""

    values: Mapping[str, Value]
    common: Value | None = None

    def of(self, expert: str, name: str, role: Role) -> Any:
        """Return the value of one expert for one tensor."""
        found = self.values[expert].at(name, role) if expert in self.values else MISSING
        if found is MISSING and self.common is not None:
            found = self.common.at(name, role)
        return found

    def leaves(self) -> Iterator[Any]:
        for value in (*self.values.values(), *([self.common] if self.common else [])):
            yield from value.leaves()

    @property
    def varies(self) -> bool:
        return any(v.varies for v in (*self.values.values(), *([self.common] if self.common else [])))

    def unused(self) -> list[str]:
        members = (*self.values.values(), *([self.common] if self.common else []))
        return [text for member in members for text in member.unused()]


def parse_value(raw: Any, label: str, *, experts: Sequence[str] = (), per_expert: bool = False) -> Value:
    """Read a value as written.

    Args:
        raw: a scalar, a list of numbers over depth, a list of rules, or (per expert) a mapping from expert to value.
        label: how errors call the parameter.
        experts: names that a mapping may use.
        per_expert: whether a mapping is allowed.

    Raises:
        RecipeError: for any other shape.
    """
    if isinstance(raw, Value):
        return raw
    if isinstance(raw, tuple):
        raw = list(raw)
    if isinstance(raw, Mapping):
        if not per_expert:
            raise RecipeError(f"{label} must be the same for all experts; it cannot be a mapping.")
        unknown = [name for name in raw if name not in experts]
        if unknown:
            raise RecipeError(f"{label} names {unknown[0]!r}, which is no expert; experts are {', '.join(experts)}.")
        return ByExpert({name: parse_value(value, label) for name, value in raw.items()})
    if isinstance(raw, list):
        if not raw:
            raise RecipeError(f"{label} is an empty list; give numbers over depth, or rules.")
        if all(isinstance(item, Mapping) for item in raw):
            return Rules(tuple(_rule(item, label) for item in raw))
        if all(isinstance(item, int | float) and not isinstance(item, bool) for item in raw):
            points = tuple(float(item) for item in raw)
            return Constant(raw[0]) if len(points) == 1 else Gradient(points)
        raise RecipeError(
            f"{label} mixes kinds of items; a list holds either numbers over depth or rules with a value."
        )
    return Constant(raw)


def _rule(item: Mapping[str, Any], label: str) -> tuple[Selector, Value]:
    from pydantic import ValidationError

    try:
        rule = ValueRule.model_validate(dict(item))
    except ValidationError as error:
        from plait.recipes._load import describe

        raise RecipeError(f"a rule of {label} is wrong: {describe(error, ValueRule)}") from None
    return rule, parse_value(rule.value, label)
