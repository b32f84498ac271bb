"""Measure how many arrays of a block's size each method holds at its peak.

    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=0 python benchmarks/method_memory.py [METHOD …] [--shape MxN]

For every method, one float32 matrix is merged from 2 and from more experts as one block, read from files as a user's
models are, and the peak of the resident memory is compared with that before. Inputs count too: of a method that sees
blocks the base and every expert, of one that sees whole tensors the base and one expert, and the output. What remains
is the line a + b·experts that the method declares as `temporaries` for the memory plan; methods whose needs depend on
the shape (Gram matrices, rotations) are measured at several. Linux only.

    … python benchmarks/method_memory.py [METHOD …] --shape 2048x8192 --scale 4 --experts 3

measures a quarter of that shape with the panels of products and the pieces of files made smaller alike: every ratio of
sizes is that of the full shape, at a sixteenth of its memory and a sixty-fourth of its work. What the linear algebra
library keeps for itself, a few MiB, weighs more there: up to one array.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from plait.engine import _evaluate, compile_recipe
from plait.engine._evaluate import Evaluator
from plait.kernels import Tally
from plait.methods import Combiner, Modifier, Sparsifier, _core, _trim, doge, methods, r_tsvm
from plait.tensors import descent, products, rotation

NAME = "model.layers.1.mlp.down_proj.weight"
#: settings with which a method does all its work on random matrices, whose updates do not oppose each other
SETTINGS = {"orthomerge": {"rotate": "all"}}


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(key)


def _models(home: Path, shape: tuple[int, int], experts: int) -> None:
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=rng)
    save_file({NAME: base}, home / "base.safetensors")
    for i in range(experts):
        save_file({NAME: base + 0.01 * torch.randn(shape, generator=rng)}, home / f"e{i}.safetensors")


def _shrink(scale: int) -> None:
    """Divide the sizes of panels and pieces as an area shrinks, and numbers of rows as a side does."""
    for module, area, side in (
        (products, "_PANEL", "_BLOCK"),
        (_evaluate, "_PIECE", None),
        (r_tsvm, "_PIECE", None),
        (descent, None, "_ROWS"),
        (rotation, None, "_ROWS"),
        (doge, None, "_ROWS"),
        (_core, None, "_ROWS"),
        (_trim, None, "_ROWS"),
    ):
        if area is not None:
            setattr(module, area, max(1, getattr(module, area) // scale**2))
        if side is not None:
            setattr(module, side, max(1, getattr(module, side) // scale))


def peak(name: str, experts: int, home: Path, shape: tuple[int, int]) -> tuple[float, float]:
    """Arrays of the matrix's size at the peak of merging it, beyond the inputs and the output; and as planned."""
    cls = methods()[name]
    given = dict(cls.example) | SETTINGS.get(name, {}) | ({"steps": 2} if "steps" in cls.parameters() else {})
    steps: list[object] = [{name: given}]
    if issubclass(cls, Sparsifier):
        steps.append("task_arithmetic")
    if issubclass(cls, Modifier):
        steps.insert(0, "task_arithmetic")
    recipe = {"method": steps, "experts": {f"e{i}": str(home / f"e{i}.safetensors") for i in range(experts)}}
    if cls.needs_base or not issubclass(cls, Combiner):
        recipe["base"] = str(home / "base.safetensors")
    plan = compile_recipe(recipe)
    evaluator = Evaluator(plan, block=shape[0] * shape[1])
    (job,) = plan.jobs
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS:")
    for step in evaluator.model_rounds():
        evaluator.facts.setdefault(step, []).append(evaluator.survey([job], step, Tally()))
    evaluator.block(job, 0, job.entry.numel)
    size = job.entry.numel * 4
    worst = (_status("VmHWM:") - before) / size
    inputs = (job.base is not None) + (1 if job.unit == "tensor" else experts) + 1
    return worst - inputs, job.memory(job.entry.numel) / size - inputs


def main() -> None:
    """Print a line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--shape", default="1024x1024", help="ROWSxCOLUMNS of the matrix")
    parser.add_argument("--experts", type=int, default=6, help="the larger number of experts")
    parser.add_argument("--scale", type=int, default=1, help="divide the shape, and panels with it")
    arguments = parser.parse_args()
    rows, columns = (int(side) // arguments.scale for side in arguments.shape.split("x"))
    _shrink(arguments.scale)
    torch.set_num_threads(1)
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") is None:
        raise SystemExit("set MALLOC_MMAP_THRESHOLD_=65536 and MALLOC_TRIM_THRESHOLD_=0 first")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as tiny:
        _models(Path(folder), (rows, columns), arguments.experts)
        _models(Path(tiny), (64, 64), arguments.experts)
        for name in arguments.methods or methods():
            cls = methods()[name]
            few, many = max(2, cls.min_experts), cls.max_experts or arguments.experts
            peak(name, min(few, many), Path(tiny), (64, 64))  # the first run also loads libraries
            low, planned = peak(name, min(few, many), Path(folder), (rows, columns))
            high, more = peak(name, many, Path(folder), (rows, columns)) if many > few else (low, planned)
            slope = (high - low) / (many - few) if many > few else 0.0
            print(
                f"{name:20s} {few}: {low:5.1f} (planned {planned:5.1f})  {many}: {high:5.1f} (planned {more:5.1f})"
                f"   a={low - slope * few:5.1f} b={slope:4.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
