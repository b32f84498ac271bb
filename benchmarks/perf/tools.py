"""The programs that are measured: plait, the floor and mergekit, each in a process of its own."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf.cases import Case, inputs, mergekit_config, plait_recipe
from perf.machine import available
from perf.process import Failed, evict, measure

__all__ = ["MERGEKIT_FLAGS", "PLAIT", "START_UP", "TOOLS", "Job", "run"]

PLAIT = [sys.executable, "-c", "from plait.cli import main; main()"]
#: phases of PLAIT_TIMINGS that are not work on tensors
START_UP = ("start", "compile")
#: none of its other flags made a merge faster: --lazy-unpickle is for pickled files; --async-write, --low-cpu-memory
#: and arithmetic in float32 cost the same or more
MERGEKIT_FLAGS = ["--quiet", "--no-copy-tokenizer", "--no-write-model-card"]
#: bytes it needs beside the inputs, its output included, in sizes of one model; more than is free is not tried
MERGEKIT_MEMORY = 5


@dataclass(frozen=True)
class Job:
    """One merge of one method."""

    case: Case
    models: Path
    experts: int = 3
    threads: int = 2
    cold: bool = False
    memory: str = "512MiB"
    mergekit: Path | None = None
    precise: bool = False


def _dump(path: Path, value: dict[str, Any]) -> Path:
    path.write_text(json.dumps(value, indent=1))  # JSON is YAML
    return path


def _plait(job: Job, scratch: Path, same: bool = False) -> dict[str, Any]:
    recipe = _dump(scratch / "recipe.yaml", plait_recipe(job.case, job.models, job.experts, same))
    timings = scratch / "timings.json"
    options = ["--memory", job.memory, "--threads", str(job.threads)]
    merge = [*PLAIT, "merge", recipe]
    found, _ = measure([*merge, "-o", scratch / "out", "-q", *options], {"PLAIT_TIMINGS": str(timings)})
    if timings.is_file():
        told = json.loads(timings.read_text())
        found |= {"phases": told["phases"], "phases_cpu": told.get("cpu", {}), "path": told.get("path", {})}
        found["work"] = sum(s for phase, s in told["phases"].items() if phase not in START_UP)
        found["work_from"] = "timings"
        taken = sum(s for phase, s in told["phases"].items() if phase != "compile")  # it is part of others
        found["exit"] = found["wall"] - taken  # what follows the merge, and what is in no phase
        if found["phases_cpu"]:
            found["work_cpu"] = sum(s for phase, s in found["phases_cpu"].items() if phase not in START_UP)
    else:
        start, _ = measure([*merge, "--dry-run", *options])
        found["work"] = max(0.0, found["wall"] - start["wall"])
        found["work_cpu"] = max(0.0, found["cpu"] - start["cpu"])
        found["work_from"] = "dry run"
    return found


def _same(job: Job, scratch: Path) -> dict[str, Any]:
    return _plait(job, scratch, same=True)


def _floor(job: Job, scratch: Path) -> dict[str, Any]:
    program = [sys.executable, "-S", Path(__file__).with_name("floor.py")]
    models = inputs(job.case, job.models, job.experts)
    found, printed = measure([*program, scratch / "out", str(job.threads), *models])
    return found | json.loads(printed)


def _mergekit(job: Job, scratch: Path) -> dict[str, Any]:
    assert job.mergekit is not None
    model = inputs(job.case, job.models, job.experts)[0]
    needed = MERGEKIT_MEMORY * sum(p.stat().st_size for p in model.glob("*.safetensors"))
    if available() < needed:
        raise Failed(
            f"mergekit needs about {needed / 1e9:.0f} GB of free memory here; {available() / 1e9:.0f} GB are free"
        )
    config = _dump(scratch / "config.yaml", mergekit_config(job.case, job.models, job.experts, job.precise))
    program = [job.mergekit / "bin" / "mergekit-yaml", config, scratch / "out", *MERGEKIT_FLAGS]
    threads = str(job.threads)
    found, _ = measure([*program, "-j", threads], {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"})
    return found


TOOLS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {
    "plait": _plait,
    "floor": _floor,
    "plait-as-mergekit": _same,
    "mergekit": _mergekit,
}


def run(tool: str, job: Job, keep: Path | None = None) -> dict[str, Any]:
    """Run a tool once beside the models and remove what it wrote, or move it to `keep`."""
    with tempfile.TemporaryDirectory(dir=job.models, prefix="run-") as folder:
        if job.cold:
            for model in inputs(job.case, job.models, job.experts):
                evict(model.glob("*.safetensors"))
        found = TOOLS[tool](job, Path(folder))
        found["bytes_written"] = sum(p.stat().st_size for p in (Path(folder) / "out").glob("*.safetensors"))
        if keep is not None:
            shutil.move(Path(folder) / "out", keep)
    return found
