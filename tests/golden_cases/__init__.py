"""How each golden vector is reproduced through the public path: one table per family of methods.

A table maps a pattern on a golden's name to a function from its description (the JSON beside it) to a `Call`. The
first pattern that matches a whole name decides. Parameters are read from the description, so that vectors of other
sizes and other parameters run through the same tables.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

import plait

Meta: TypeAlias = Mapping[str, Any]
State: TypeAlias = dict[str, Tensor]

ELEMENTWISE = 1e-6
SPECTRAL = 1e-4


@dataclass(frozen=True)
class Call:
    """One call of `plait.merge_state_dicts`.

    Attributes:
        method: name or steps.
        parameters: the method's parameters.
        experts: inputs to merge.
        base: the base input, or None.
        weights: one per expert.
        recipe: further recipe keys.
        tolerance: allowed relative error of a tensor's update.
        threshold: up to 0.1 % of entries may stand exactly at a threshold and fall on the other side.
        masks: name of the file with drawn masks, and whether 1 means "keep".
        prepare: changes the inputs first, where a reference did.
    """

    method: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    experts: tuple[str, ...] = ("expert0", "expert1", "expert2")
    base: str | None = "base"
    weights: list[float] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    tolerance: float = ELEMENTWISE
    threshold: bool = False
    masks: tuple[str, Callable[[State, str, str], Tensor]] | None = None
    prepare: Callable[[State, list[State]], list[State]] | None = None

    def run(self, load: Callable[[str], State]) -> State:
        """Merge."""
        base = load(self.base) if self.base else None
        states = [load(name) for name in self.experts]
        if self.prepare is not None:
            assert base is not None
            states = self.prepare(base, states)
        replay = None
        if self.masks is not None:
            file, pick = load(self.masks[0]), self.masks[1]
            replay = lambda tensor, expert: pick(file, tensor, expert)  # noqa: E731
        return plait.merge_state_dicts(
            self.method,
            {n if n != "base" else "the_base": s for n, s in zip(self.experts, states, strict=True)},
            base,
            weights=self.weights,
            recipe=self.recipe,
            replay=replay,
            **self.parameters,
        )


Builder: TypeAlias = Callable[[Meta], Call]


def _tables(name: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda i: i.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found += list(getattr(module, name, {}).items())
    return found


def builder(golden: str) -> Builder | None:
    """Return what reproduces a golden, or None."""
    return next((build for pattern, build in _tables("CASES") if re.fullmatch(pattern, golden)), None)


def reason_left_out(golden: str) -> str | None:
    """Return why a golden is not reproduced, where that is known."""
    return next((why for pattern, why in _tables("LEFT_OUT") if re.fullmatch(pattern, golden)), None)
