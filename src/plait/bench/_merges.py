"""The merges that the demo compares, as data: a label and a recipe each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Merge", "demo_merges"]

Merge: TypeAlias = tuple[str, dict[str, Any]]


def demo_merges(base: Path, experts: Mapping[str, Path]) -> list[Merge]:
    """List (label, recipe): defaults, except for the parameters that the label states."""
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
