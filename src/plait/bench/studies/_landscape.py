"""The loss between models: on the plane through the base and two experts, and along the lines of that plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plait.bench.studies._cells import Cell, Kitchen
from plait.bench.studies._config import StudyConfig
from plait.bench.studies._pools import Pool
from plait.evaluation import FileTask

__all__ = ["landscape", "layers"]

_EXAMPLES = 64  # of each task and point: a surface is looked at, nothing is chosen by it
_LOSSES = ("cross_entropy", "bits_per_byte")


def landscape(
    config: StudyConfig, pool: Pool, kitchen: Kitchen, report: Callable[[str], None]
) -> dict[str, Any] | None:
    """Loss on validation of base + a·τ₁ + b·τ₂ on a square grid of (a, b), for the experts of the first two tasks.

    Args:
        config: says how many points an edge has.
        pool: the models.
        kitchen: makes and keeps cells.
        report: told about every point.

    Returns:
        The points with the losses of both experts' tasks, and the three lines between the models that lie on the grid;
        None if there is nothing to draw.
    """
    firsts: dict[str, str] = {}
    for name in pool.experts:
        if name in pool.tasks:
            firsts.setdefault(pool.tasks[name].name, name)
    names = list(firsts.values())[:2]
    tasks = [task for name in names if (task := _loss_of(pool.tasks[name])) is not None]
    if not config.landscape or len(tasks) < 2:
        return None
    step = 1 / (config.landscape - 3)  # 0 and 1 are on the grid, one step lies beyond each
    values = [round((i - 1) * step, 6) for i in range(config.landscape)]
    points: list[dict[str, Any]] = []
    for b in values:
        for a in values:
            report(f"loss plane: {names[0]} × {a:g}, {names[1]} × {b:g}")
            weights = dict(zip(names, (a, b), strict=True))
            experts = {name: {"model": str(pool.experts[name]), "weight": weights[name]} for name in names}
            recipe = {"method": "task_arithmetic", "base": str(pool.base), "experts": experts}
            cell = kitchen.cell(pool, recipe, [(task.limited(_EXAMPLES), "validation") for task in tasks])
            points.append({"a": a, "b": b, **_losses(cell), "recipe": recipe})
    on_grid = {(point["a"], point["b"]): point for point in points}
    lines = {
        f"base → {names[0]}": [on_grid[t, 0.0] for t in values if (t, 0.0) in on_grid],
        f"base → {names[1]}": [on_grid[0.0, t] for t in values if (0.0, t) in on_grid],
        f"{names[0]} → {names[1]}": [on_grid[key] for t in values if (key := (round(1 - t, 6), t)) in on_grid],
    }
    along = {
        "base": [t for t in values if (t, 0.0) in on_grid],
        "pair": [t for t in values if (round(1 - t, 6), t) in on_grid],
    }
    return {
        "experts": names,
        "tasks": [task.name for task in tasks],
        "metric": {task.name: task.metric for task in tasks},
        "values": values,
        "points": points,
        "lines": [
            {"name": name, "t": along["pair" if i == 2 else "base"], "points": chosen}
            for i, (name, chosen) in enumerate(lines.items())
            if len(chosen) > 1
        ],
    }


def _loss_of(task: FileTask) -> FileTask | None:
    """The task with a loss as its metric."""
    metric = next((name for name in _LOSSES if name in task.kind.metrics), None)
    return None if metric is None or "validation" not in task.file.splits else task.measuring(metric)


def _losses(cell: Cell) -> dict[str, Any]:
    losses = {name: scores.value for name, scores in (cell.scores or {}).items()}
    return {"losses": losses, "mean": sum(losses.values()) / len(losses) if losses else None, "error": cell.error}


def layers(pool: Pool) -> dict[str, Any]:
    """Size of what every expert changed, by layer, and how far pairs of experts disagree about signs."""
    from plait.reports import diff

    found = diff(str(pool.base), {name: str(path) for name, path in pool.experts.items()})
    by_layer = found.by_layer()
    if not by_layer:
        by_layer = {"all": found.by_role()["all"]}
    pairs = next(iter(by_layer.values()))["pairs"]
    return {
        "layers": list(by_layer),
        "norms": {
            name: [figures["experts"][name]["relative_norm"] for figures in by_layer.values()] for name in pool.experts
        },
        "conflict": {
            pair: [_conflict(figures["pairs"][pair]["sign_agreement"]) for figures in by_layer.values()]
            for pair in pairs
        },
        "cosine": {pair: [figures["pairs"][pair]["cosine"] for figures in by_layer.values()] for pair in pairs},
    }


def _conflict(agreement: float | None) -> float | None:
    return None if agreement is None else 1 - agreement
