"""CPU seconds and FLOP/s of spectral methods on the matrices of a 1 B model, beside what a plain product achieves.

    OMP_NUM_THREADS=1 python benchmarks/spectral.py [METHOD …] [--shape 2048x8192] [--repeats 3]

Three bfloat16 experts and their base are merged by one thread, through the engine. Every matrix product (2·m·n·k) and
every factorisation (9·n³ for the eigenvectors of a symmetric matrix, 4·m·n² + 22·n³ for an SVD, n its shorter side) is
counted and timed as torch dispatches it; the rest is reading, casting, adding. Beside them stand the rates of one
product A·Aᵀ of the same matrix in float32 and in float64, measured in the same run. Times are CPU times of the thread,
medians of the repeats. `wudi` takes 10 steps. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plait.engine import compile_recipe
from plait.engine._evaluate import Evaluator

NAME = "model.layers.0.mlp.up_proj.weight"
METHODS: dict[str, dict[str, Any]] = {"tsv_merge": {}, "iso_c": {}, "wudi": {"steps": 10}}
SHAPES = ((2048, 2048), (2048, 8192), (8192, 2048))


def _flop(name: str, arguments: tuple[Any, ...]) -> tuple[str, float]:
    """The class of an operation and its floating-point operations."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    if name in ("mm", "addmm", "addmm_", "addmm.out", "mm.out"):
        a, b = tensors[-2:]
        kind = "products in float64" if a.dtype == torch.float64 else "products in float32"
        return kind, 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
    if "eigh" in name:
        return "eigenvectors in float64", 9.0 * tensors[0].shape[-1] ** 3
    if "svd" in name:
        m, n = sorted(tensors[0].shape[-2:], reverse=True)
        return "singular vectors", 4.0 * m * n * n + 22.0 * n**3
    return "rest", 0.0


class Counting(TorchDispatchMode):
    """Counts operations and the CPU time they take, by class."""

    def __init__(self) -> None:
        super().__init__()
        self.flop: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, flop = _flop(func._schema.name.split("::")[1], args)
        began = time.thread_time()
        result = func(*args, **(kwargs or {}))
        self.seconds[kind] += time.thread_time() - began
        self.flop[kind] += flop
        return result


def _timed(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def _models(shape: tuple[int, int], experts: int) -> dict[str, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=rng) * shape[1] ** -0.5
    states = {"memory:base": {NAME: base.bfloat16()}}
    for i in range(experts):
        change = 0.02 * torch.randn(shape, generator=rng) * shape[1] ** -0.5
        states[f"memory:e{i}"] = {NAME: (base + change).bfloat16()}
    return states


def product_rates(shape: tuple[int, int], repeats: int) -> dict[str, float]:
    """GFLOP/s of A·Aᵀ over the longer side."""
    r, l = min(shape), max(shape)
    found = {}
    for dtype in (torch.float32, torch.float64):
        a = torch.randn(r, l, dtype=dtype)
        out = torch.empty(r, r, dtype=dtype)
        seconds = median(_timed(lambda a=a, out=out: torch.mm(a, a.mT, out=out)) for _ in range(repeats))
        found[str(dtype).removeprefix("torch.")] = 2e-9 * r * r * l / seconds
    return found


def measure(name: str, states: dict[str, dict[str, Tensor]], repeats: int) -> dict[str, Any]:
    """Merge the matrix a few times; the run of median time counts."""
    experts = {k.removeprefix("memory:"): k for k in states if k != "memory:base"}
    recipe = {"method": [{name: METHODS.get(name, {})}], "base": "memory:base", "experts": experts}
    plan = compile_recipe(recipe, state_dicts=states)
    (job,) = plan.jobs
    runs: list[tuple[float, Counting]] = []
    for _ in range(repeats):
        evaluator, counting = Evaluator(plan), Counting()
        with counting:
            runs.append((_timed(lambda e=evaluator: e.block(job, 0, job.entry.numel)), counting))
    seconds, counting = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
    total = sum(counting.flop.values())
    counting.seconds["rest"] = seconds - sum(v for k, v in counting.seconds.items() if k != "rest")
    return {
        "cpu_s": round(seconds, 2),
        "gflop": round(total / 1e9, 1),
        "gflop_per_s": round(total / 1e9 / seconds, 1),
        "parts": {
            kind: {
                "cpu_s": round(spent, 2),
                "gflop": round(counting.flop[kind] / 1e9, 1),
                "gflop_per_s": round(counting.flop[kind] / 1e9 / spent, 1) if counting.flop[kind] else None,
            }
            for kind, spent in sorted(counting.seconds.items(), key=lambda item: -item[1])
        },
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--shape", action="append", help="ROWSxCOLUMNS; may be given again")
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shapes = [tuple(map(int, s.split("x"))) for s in arguments.shape or []] or SHAPES
    found: dict[str, Any] = {}
    for shape in shapes:
        states = _models(shape, arguments.experts)
        key = f"{shape[0]}x{shape[1]}"
        found[key] = {"plain product, GFLOP/s": {k: round(v, 1) for k, v in product_rates(shape, 3).items()}}
        for name in arguments.methods or METHODS:
            found[key][name] = measure(name, states, arguments.repeats)
            print(key, name, found[key][name], file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
