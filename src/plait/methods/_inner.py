"""Any method inside a space that the experts share: their coordinates are its task vectors, on a base of zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plait.errors import RecipeError
from plait.methods._contract import Combiner, Group, Method, Modifier, Sparsifier, Subject
from plait.methods._parameters import internal

__all__ = ["arrays_within", "check_inner", "is_random", "merge_within"]


def _steps(name: str, density: float) -> list[Method]:
    """The methods that a name stands for, with their defaults; `density` where they have one, and a scale of 1."""
    from plait.methods._registry import find, find_composition, find_presets

    found: list[Method] = []
    for step, preset in zip(find_composition(name), find_presets(name), strict=True):
        cls = find(step)
        known = cls.parameters()
        values: dict[str, Any] = {"lambda_": 1.0} if "lambda_" in known else {}
        if "density" in known:
            values["density"] = density
        given: Mapping[str, Any] = {internal(key, known): value for key, value in preset.items()}
        found.append(cls(**{**cls.example, **values, **given}))
    return found


def check_inner(owner: str, name: str, density: float) -> None:
    """Raise RecipeError unless a name stands for a method that merges matrices by themselves."""
    steps = _steps(name, density)
    if not any(isinstance(step, Combiner) for step in steps):
        raise RecipeError(
            f"inner: {name!r} of {owner!r} merges nothing by itself; name a method that does: dare_ties, …"
        )
    for step in steps:
        if step.adapters_only or step.statistics or step.name == owner:
            raise RecipeError(f"inner: {step.name!r} cannot stand inside {owner!r}; it needs more than task vectors.")


def is_random(name: str, density: float) -> bool:
    """Whether the method of a name draws random numbers."""
    return any(step.random for step in _steps(name, density))


def arrays_within(name: str, density: float, cores: Subject, experts: int) -> float:
    """Arrays of the cores' size at the peak of `merge_within`: all cores, their base, and what a step needs."""
    return experts + 1.0 + max(step.arrays(cores, experts) for step in _steps(name, density))


def merge_within(cores: Sequence[Tensor], name: str, group: Group, density: float) -> Tensor:
    """Merge coordinates by another method; what it must know of all of them is counted over this one matrix.

    Args:
        cores: the experts' coordinates, each of one shape, weights applied.
        name: a method's name, or that of a chain.
        group: whose coordinates they are.
        density: of the methods that have one.
    """
    held = tuple(cores[i] for i in range(len(cores)))
    subject = Subject(group.name, tuple(held[0].shape), group.role)
    inside = Group(
        subject, torch.zeros_like(held[0]), held, group.names, (1.0,) * len(held), draws=group.draws, given_deltas=True
    )
    for step in _steps(name, density):
        inside = _applied(step, inside)
    assert inside.merged is not None  # check_inner has seen a combiner
    return inside.merged


def _applied(step: Method, group: Group) -> Group:
    shape = group.subject.shape
    unit = step.unit(group.subject)
    seen = shape if unit == "tensor" else (-1, shape[-1]) if unit == "row" else (-1,)
    assert group.base is not None
    view = replace(
        group,
        base=group.base.reshape(seen),
        given=tuple(values.reshape(seen) for values in group.given),
        merged=None if group.merged is None else group.merged.reshape(seen),
    )
    facts: list[Any] = []
    for _ in range(step.rounds):
        facts.append(step.survey(view.with_facts(tuple(facts))))
    view = view.with_facts(tuple(facts))
    if isinstance(step, Sparsifier):
        return group.with_deltas([delta.reshape(shape) for delta in step.sparsify(view)])
    if isinstance(step, Modifier):
        return replace(group, merged=step.adjust(view).reshape(shape))
    assert isinstance(step, Combiner)
    return replace(group, merged=step.merge(view).reshape(shape))
