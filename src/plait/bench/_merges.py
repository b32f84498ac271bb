"""The merges that the demo compares, as data: a label and a recipe each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Merge", "catalogue", "demo_merges"]

Merge: TypeAlias = tuple[str, dict[str, Any]]


def demo_merges(base: Path, experts: Mapping[str, Path]) -> list[Merge]:
    """List (label, recipe) of the best-known methods: defaults, except for the parameters that the label states."""
    models: dict[str, Any] = {"base": str(base), "experts": {name: str(path) for name, path in experts.items()}}
    first, second, *_ = experts
    pair: dict[str, Any] = {**models, "experts": {name: models["experts"][name] for name in (first, second)}}
    halves = [
        {"model": str(experts[first]), "layers": [0, 3]},
        {"model": str(experts[second]), "layers": [3, 6]},
    ]
    sparse = {"dare": {"density": 0.1}}
    return [
        ("linear", {"method": "linear", **models}),
        ("task_arithmetic, lambda 0.4", {"method": "task_arithmetic", **models, "parameters": {"lambda": 0.4}}),
        ("task_arithmetic, lambda 1", {"method": "task_arithmetic", **models, "parameters": {"lambda": 1.0}}),
        ("ties", {"method": "ties", **models}),
        (
            "dare, density 0.1 + task_arithmetic, lambda 0.4",
            {"method": [sparse, {"task_arithmetic": {"lambda": 0.4}}], **models},
        ),
        ("dare, density 0.1 + ties", {"method": [sparse, {"ties": {}}], **models}),
        (f"slerp, t 0.5: {first}, {second}", {"method": "slerp", **pair, "parameters": {"t": 0.5}}),
        (f"passthrough: layers 0-2 of {first}, 3-5 of {second}", {"method": "passthrough", "slices": halves}),
    ]


def catalogue(base: Path, experts: Mapping[str, Path], listed: list[Merge]) -> list[Merge]:
    """List every other method with its default parameters.

    A sparsifier stands in front of task arithmetic, a modifier behind it; a method of one or two models gets the first
    ones. A method that cannot run without some parameter gets its example's, which the label states. Methods that merge
    the factors of adapters are left out: the experts here are whole models.
    """
    from plait.methods import (
        Combiner,
        Modifier,
        Sparsifier,
        compositions,
        find,
        find_composition,
        find_presets,
        methods,
    )

    shown = {recipe["method"] for _, recipe in listed if isinstance(recipe["method"], str)}
    chains: set[str] = set()
    merges: list[Merge] = []
    for name in [*sorted(set(methods()) - shown), *sorted(compositions())]:
        steps = find_composition(name)
        if any(find(step).adapters_only for step in steps):
            continue
        method: Any = name
        label = name
        if len(steps) == 1 and issubclass(find(name if name in methods() else steps[0]), Sparsifier):
            method, label = [name, "task_arithmetic"], f"{name} + task_arithmetic"
        elif len(steps) == 1 and issubclass(find(steps[0]), Modifier):
            method, label = ["task_arithmetic", name], f"task_arithmetic + {name}"
        parts = method if isinstance(method, list) else steps
        chain = repr((tuple(parts), [dict(values) for values in find_presets(name) if values]))
        if chain in chains:
            continue  # another name for a chain that is listed already
        chains.add(chain)
        merging = next((cls for cls in map(find, steps) if issubclass(cls, Combiner)), find("task_arithmetic"))
        chosen = list(experts)[: merging.max_experts]
        recipe: dict[str, Any] = {"method": method, "experts": {task: str(experts[task]) for task in chosen}}
        if merging.needs_base or merging.optional_base:
            recipe["base"] = str(base)
        if len(chosen) < len(experts):
            label += f": {', '.join(chosen)}"
        given = {key: value for step in steps for key, value in find(step).example.items()}
        if given:
            recipe["parameters"] = given
            label += f" ({', '.join(f'{key} {value:g}' for key, value in given.items())})"
        merges.append((label, recipe))
    return merges
