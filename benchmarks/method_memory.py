"""Measure how many arrays of a block's size each method holds at its peak, beyond the inputs.

    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=0 python benchmarks/method_memory.py [METHOD …]

For every method, one float32 matrix of 1024 × 1024 is merged from 2 and from 6 experts as one block, and the peak of
the resident memory is compared with that before. The line a + b·experts through both is what the method declares as
`temporaries = (a, b)` for the memory plan. Linux only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from plait.engine import compile_recipe
from plait.engine._evaluate import Evaluator
from plait.methods import Combiner, Modifier, Sparsifier, methods

SIDE = 1024
SHAPE = (SIDE, SIDE)
NAME = "model.layers.1.mlp.down_proj.weight"


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(key)


def peak(name: str, experts: int) -> float:
    """Arrays of the matrix's size at the peak of merging it, beyond the inputs."""
    cls = methods()[name]
    rng = torch.Generator().manual_seed(0)
    base = {NAME: torch.randn(SHAPE, generator=rng)}
    states = {f"e{i}": {NAME: base[NAME] + 0.01 * torch.randn(SHAPE, generator=rng)} for i in range(experts)}
    steps: list[object] = [{name: dict(cls.example)}]
    if issubclass(cls, Sparsifier):
        steps.append("task_arithmetic")
    if issubclass(cls, Modifier):
        steps.insert(0, "task_arithmetic")
    recipe = {"method": steps, "experts": {k: f"memory:{k}" for k in states}}
    if cls.needs_base or not issubclass(cls, Combiner):
        recipe["base"] = "memory:base"
    plan = compile_recipe(recipe, state_dicts={**{f"memory:{k}": v for k, v in states.items()}, "memory:base": base})
    evaluator = Evaluator(plan, block=1 << 20)
    (job,) = plan.jobs
    worst = 0.0
    for _ in range(2):  # the first run also loads libraries
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS:")
        if not evaluator.facts:
            for step in evaluator.model_rounds():
                evaluator.facts.setdefault(step, []).append(evaluator.survey(job, step))
        evaluator.block(job, 0, job.entry.numel)
        evaluator.forget(job)
        worst = (_status("VmHWM:") - before) / (SIDE * SIDE * 4)
        evaluator.facts.clear()
    return worst


def main() -> None:
    """Print a line per method."""
    torch.set_num_threads(1)
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") is None:
        raise SystemExit("set MALLOC_MMAP_THRESHOLD_=65536 and MALLOC_TRIM_THRESHOLD_=0 first")
    for name in sys.argv[1:] or methods():
        cls = methods()[name]
        few, many = max(2, cls.min_experts), cls.max_experts or 6
        low = peak(name, min(few, many))
        high = peak(name, many) if many > few else low
        slope = (high - low) / (many - few) if many > few else 0.0
        print(
            f"{name:20s} {few}: {low:5.1f}  {many}: {high:5.1f}   a={low - slope * few:5.1f} b={slope:4.1f}", flush=True
        )


if __name__ == "__main__":
    main()
