"""Peak resident memory of every method on checkpoints of real shapes, beside what `--dry-run` predicts.

    python benchmarks/make_checkpoints.py DIR --size 1b --layers 1 --experts 3
    python benchmarks/memory.py DIR [METHOD …] [--memory 512MiB] > docs/memory.json

The peak does not depend on the number of layers, only on the largest tensor, the number of experts and the threads;
one layer keeps this short. Methods that optimise are run for two steps, OrthoMerge with `rotate: all`: random experts
have no rows that oppose each other. Each merge is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from plait import plan as compile_plan
from plait.engine import Options, check_memory, resident_memory
from plait.errors import MemoryBudgetError
from plait.methods import Combiner, Modifier, Sparsifier, methods


def recipe_of(name: str, home: Path) -> dict[str, Any]:
    """The method with its defaults, on the base and the experts in a folder."""
    cls = methods()[name]
    given = dict(cls.example) | ({"rotate": "all"} if name == "orthomerge" else {})
    if "steps" in cls.parameters():
        given["steps"] = 2
    steps: list[Any] = [{name: given}]
    if issubclass(cls, Sparsifier):
        steps.append("task_arithmetic")
    if issubclass(cls, Modifier):
        steps.insert(0, "task_arithmetic")
    experts = sorted(p.name for p in home.iterdir() if p.name.startswith("expert"))[: cls.max_experts]
    recipe: dict[str, Any] = {"method": steps, "experts": {e: str(home / e) for e in experts}}
    if cls.needs_base or not issubclass(cls, Combiner):
        recipe["base"] = str(home / "base")
    return recipe


def measure(recipe: Path, out: Path, memory: str, threads: int) -> tuple[int, float]:
    """Run the program; return its peak resident bytes and its CPU seconds."""
    program = [sys.executable, "-c", "from plait.cli import main; main()"]
    options = ["-q", "--memory", memory, "--threads", str(threads)]
    process = subprocess.Popen([*program, "merge", str(recipe), "-o", str(out), *options])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{recipe} failed")
    return usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--memory", default="512MiB", help="budget; raised for methods that need more")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for name in arguments.methods or methods():
        memory = arguments.memory
        with tempfile.TemporaryDirectory(dir=arguments.models) as scratch:
            path, out = Path(scratch) / "recipe.yaml", Path(scratch) / "out"
            path.write_text(yaml.safe_dump(recipe_of(name, arguments.models)))
            plan = compile_plan(path)
            options = Options(memory=512 << 20, threads=arguments.threads)
            try:
                check_memory(plan, options)
            except MemoryBudgetError as error:
                memory = str(error).rsplit("--memory ", 1)[1].split()[0]
                options = Options(memory=int(memory.removesuffix("MiB")) << 20, threads=arguments.threads)
            predicted = resident_memory(plan, options)
            peak, seconds = measure(path, out, memory, arguments.threads)
            shutil.rmtree(out)
        found[name] = {
            "threads": arguments.threads,
            "memory": memory,
            "predicted_mib": round(predicted / 2**20),
            "peak_mib": round(peak / 2**20),
            "ratio": round(predicted / peak, 2),
            "cpu_s": round(seconds, 1),
        }
        print(name, found[name], file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
