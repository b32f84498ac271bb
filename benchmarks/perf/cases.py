"""The methods that are measured, with the same parameters for plait and for mergekit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CASES", "Case", "inputs", "mergekit_config", "plait_recipe"]


@dataclass(frozen=True)
class Case:
    """One method.

    `ours` are plait's parameters: the authors' variant, as users get it by name. `theirs` are what mergekit calls the
    same. Where mergekit computes something else under that name (thresholds per tensor instead of over the model, norms
    instead of 1/density), `same` are the parameters with which plait computes that.

    `passes` says what a target is held against: `one` reads the inputs once; `survey` must know something of whole
    tensors or the whole model first (a threshold, a norm, the majority sign); `angle` is a survey too, but its merge
    alone, once the angle is known, counts as one pass.
    """

    method: str
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)
    same: dict[str, Any] | None = None
    plait_name: str = ""
    base: bool = True
    experts: int | None = None
    passes: str = "survey"


_TIES = {"scope": "tensor", "trim": "exact", "zero_sign": "positive"}
_DARE_TIES = {
    "dare.rescale": "l1",
    "ties.scope": "tensor",
    "ties.trim": "exact",
    "ties.zero_sign": "positive",
    "combine": "sum",
}
_ALL = (
    Case("linear", base=False, theirs={"weight": 1.0}, passes="one"),
    Case("task_arithmetic", {"lambda": 0.4}, {"weight": 1.0, "lambda": 0.4}, passes="one"),
    Case("slerp", {"t": 0.5}, {"t": 0.5}, base=False, experts=2, passes="angle"),
    Case("nuslerp", {}, {"weight": 1.0}, base=False, experts=2, passes="angle"),
    Case("dare_linear", {"density": 0.2}, {"weight": 1.0, "density": 0.2}, {"dare.rescale": "l1"}, passes="one"),
    Case(
        "dare_ties",
        {"dare.density": 0.2, "ties.density": 1.0},
        {"weight": 1.0, "density": 0.2},
        _DARE_TIES,
    ),
    Case("ties", {"density": 0.2}, {"weight": 1.0, "density": 0.2}, _TIES),
    Case(
        "breadcrumbs",
        {"density": 0.2, "gamma": 0.01},
        {"weight": 1.0, "density": 0.2, "gamma": 0.01},
        {"breadcrumbs.scope": "tensor", "crowded": "drop_less"},
        plait_name="model_breadcrumbs",
    ),
    Case(
        "della",
        {"density": 0.2, "epsilon": 0.1, "lambda": 1.0},
        {"weight": 1.0, "density": 0.2, "epsilon": 0.1},
        {"rescale": "l1"},
    ),
    Case("model_stock", same={"clamp": False, "floor": 1e-6}),
    Case("sce", {"select_topk": 0.1}, {"select_topk": 0.1}, {"select": "deltas", "negligible": 1e-6}),
    Case("karcher", {"max_iter": 10}, {"max_iter": 10}, base=False),
)
CASES: dict[str, Case] = {case.method: case for case in _ALL}
_PER_MODEL = {"weight", "density", "gamma", "epsilon"}


def inputs(case: Case, models: Path, experts: int) -> list[Path]:
    """The folders that a merge reads, the base last."""
    found = [models / f"expert{i}" for i in range(min(experts, case.experts or experts))]
    return [*found, models / "base"] if case.base else found


def plait_recipe(case: Case, models: Path, experts: int, same: bool = False) -> dict[str, Any]:
    """The recipe; `same` asks for mergekit's variant."""
    folders = inputs(case, models, experts)
    recipe: dict[str, Any] = {"method": case.plait_name or case.method, "dtype": "bfloat16"}
    if case.base:
        recipe["base"] = str(folders.pop())
    recipe["experts"] = {folder.name: str(folder) for folder in folders}
    parameters = case.ours | (case.same or {} if same else {})
    return recipe | ({"parameters": parameters} if parameters else {})


def mergekit_config(case: Case, models: Path, experts: int, precise: bool = False) -> dict[str, Any]:
    """The same for mergekit, in bfloat16 throughout, its usual and fastest arithmetic, or in float32."""
    folders = inputs(case, models, experts)
    config: dict[str, Any] = {"merge_method": case.method, "dtype": "bfloat16"}
    if precise:
        config |= {"dtype": "float32", "out_dtype": "bfloat16"}
    if case.base:
        config["base_model"] = str(folders.pop())
    elif case.method == "slerp":
        config["base_model"] = str(folders[0])
    each = {k: v for k, v in case.theirs.items() if k in _PER_MODEL}
    shared = {k: v for k, v in case.theirs.items() if k not in _PER_MODEL}
    config["models"] = [{"model": str(f)} | ({"parameters": each} if each else {}) for f in folders]
    return config | ({"parameters": shared} if shared else {})
