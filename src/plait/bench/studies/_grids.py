"""What each method is tried with: its coefficients' grid. The best setting is chosen on validation, never on test."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from plait.errors import RecipeError

__all__ = ["DEFAULTS", "Entrant", "entrant", "entrants", "label_of", "steps_of"]

Setting: TypeAlias = dict[str, Any]

_SUM = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # of a sum of task vectors
_ONE = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of one merged task vector
_WIDE = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)

#: method → (steps, fixed parameters, grid); what is not listed runs over λ if it has one
_KNOWN: dict[str, tuple[Any, dict[str, Any], dict[str, Sequence[Any]]]] = {
    "linear": ("linear", {}, {}),
    "task_arithmetic": ("task_arithmetic", {}, {"lambda": _SUM}),
    "ties": ("ties", {"density": 0.2}, {"lambda": _ONE}),
    "dare_linear": ([{"dare": {"density": 0.1}}, "task_arithmetic"], {}, {"lambda": _SUM}),
    "dare_ties": ([{"dare": {"density": 0.2}}, "ties"], {}, {"lambda": _ONE}),
    "magnitude": ([{"magnitude_pruning": {"density": 0.2}}, "task_arithmetic"], {}, {"lambda": _ONE}),
    # masks are of the whole sum, as the authors make them; what is chosen is the scale of what they keep
    "consensus_ta": ("consensus_ta", {"lambda": 1.0}, {"alpha": _SUM}),
    "lines": (["task_arithmetic", "lines"], {}, {"lambda": _SUM}),
    "model_stock": ("model_stock", {}, {}),
    "localize_stitch": ("localize_stitch", {}, {"density": (0.05, 0.1, 0.2)}),
    "pcb": ("pcb", {}, {"lambda": _ONE}),
    "tsv_merge": ("tsv_merge", {}, {"lambda": _ONE}),
    "r_tsvm": ("r_tsvm", {}, {"lambda": _ONE}),
    "iso_c": ("iso_c", {}, {"lambda": _WIDE}),
    "iso_cts": ("iso_cts", {}, {"lambda": _WIDE}),
    "wudi": ("wudi", {}, {"lambda": (0.8, 1.0, 1.2)}),
}

#: methods of a study that names none, by the testbed's size
DEFAULTS: dict[str, tuple[str, ...]] = {
    "quick": ("linear", "task_arithmetic", "ties", "consensus_ta", "model_stock", "tsv_merge", "iso_c"),
    "full": tuple(_KNOWN),
}


@dataclass(frozen=True)
class Entrant:
    """A method as a study tries it.

    Attributes:
        label: what the tables call it.
        method: a recipe's `method`.
        parameters: what every setting has.
        grid: parameter → the values that are tried; all combinations.
        extend: how often a grid of one parameter is continued when its best value is the first or the last one.
    """

    label: str
    method: Any
    parameters: Setting = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    extend: int = 2

    def settings(self) -> list[Setting]:
        """Every combination of the grid's values."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def beyond(self, tried: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> Setting | None:
        """One step beyond the grid, if the best setting is at one of its ends and there may be a better one."""
        if len(self.grid) != 1 or len(tried) >= len(self.settings()) + self.extend:
            return None
        ((name, _),) = self.grid.items()
        values = sorted({setting[name] for setting in tried})
        if len(values) < 2 or not all(isinstance(value, int | float) for value in values) or values[0] <= 0:
            return None
        if best[name] == values[-1]:
            return {name: round(values[-1] + (values[-1] - values[-2]), 6)}
        return {name: round(values[0] / 2, 6)} if best[name] == values[0] else None

    def recipe(self, base: str | None, experts: Mapping[str, str], setting: Setting, seed: int) -> dict[str, Any]:
        """The recipe of a setting."""
        content: dict[str, Any] = {"method": self.method}
        if base is not None and self.takes_base:
            content["base"] = base
        content["experts"] = dict(experts)
        parameters = {**self.parameters, **setting}
        content |= {"parameters": parameters} if parameters else {}
        return content | ({"seed": seed} if seed else {})

    @property
    def takes_base(self) -> bool:
        """Whether any of its steps reads the base."""
        return any(cls.needs_base or cls.optional_base for cls in steps_of(self.method))


def steps_of(method: Any) -> list[Any]:
    """The classes of a recipe's `method`."""
    from plait.methods import find, find_composition

    steps = method if isinstance(method, list) else [method]
    names = [step if isinstance(step, str) else next(iter(step)) for step in steps]
    return [find(part) for name in names for part in find_composition(name)]


def entrant(name: str) -> Entrant:
    """The entrant of a method's name, with the grid that is known for it or one over its λ.

    Raises:
        UnknownMethodError: there is no such method.
    """
    if name in _KNOWN:
        method, parameters, grid = _KNOWN[name]
        return Entrant(name, method, parameters, grid)
    from plait.methods import Combiner

    classes = steps_of(name)
    method: Any = name
    if not any(issubclass(cls, Combiner) for cls in classes):
        kind = classes[0].kind
        method = [name, "task_arithmetic"] if kind == "sparsifier" else ["task_arithmetic", name]
    labels = {p.label for cls in steps_of(method) for p in cls.parameters().values()}
    summed = any(cls.name == "task_arithmetic" for cls in steps_of(method))
    grid: dict[str, Sequence[Any]] = {"lambda": _SUM if summed else _ONE} if "lambda" in labels else {}
    needed = {key: value for cls in classes for key, value in cls.example.items() if key not in grid}
    return Entrant(name, method, needed, grid)


def entrants(given: Sequence[str | Mapping[str, Any]]) -> list[Entrant]:
    """Entrants of names and of mappings {name, method, parameters, grid, extend}.

    Raises:
        RecipeError: two have one name.
        UnknownMethodError: there is no such method.
    """
    found = []
    for item in given:
        if isinstance(item, str):
            found.append(entrant(item))
            continue
        known = dict(item)
        label, method = known.pop("name"), known.pop("method", None)
        steps_of(method if method is not None else label)  # an unknown method is said now
        found.append(Entrant(label, method if method is not None else label, **known))
    labels = [one.label for one in found]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise RecipeError(f"two methods of the study are called {twice[0]!r}; give one of them another name.")
    return found


def label_of(setting: Mapping[str, Any]) -> str:
    """A setting in a few letters."""
    return ", ".join(f"{'λ' if key == 'lambda' else key} {value}" for key, value in setting.items())
