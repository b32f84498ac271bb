"""What is measured: methods against the floor and mergekit, scaling, many tensors, start-up."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf.cases import CASES
from perf.machine import idle
from perf.models import checkpoints
from perf.process import Failed, measure
from perf.results import Results
from perf.tools import PLAIT, TOOLS, Job, run

__all__ = ["Bench", "methods", "scaling", "startup", "tensors"]

HUNDRED_MB = "0.1b/7"


@dataclass
class Bench:
    """Where things are and how often they run."""

    home: Path
    results: Results
    mergekit: Path | None = None
    runs: int = 3
    mergekit_runs: int = 3
    threads: int = 2
    keep: bool = False
    tools: Sequence[str] = tuple(TOOLS)
    methods: Sequence[str] = tuple(CASES)
    where: str = "memory"
    memory: str = "512MiB"

    def tools_of(self, job: Job) -> list[str]:
        """The tools that can run this job."""
        found = [t for t in self.tools if t != "mergekit" or self.mergekit]
        return [t for t in found if t != "plait-as-mergekit" or job.case.same]

    def rounds(self, suite: str, size: str, job: Job, tools: Sequence[str]) -> None:
        """Run the tools in turns and add their medians; plait once more before, which is kept apart as `first`."""
        load = idle()
        runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
        first: dict[str, dict[str, Any]] = {}
        errors: dict[str, str] = {}
        for turn in range(-1, max(self.runs, self.mergekit_runs)):
            for tool in tools if turn % 2 == 0 else reversed(tools):
                count = self.mergekit_runs if tool == "mergekit" else self.runs
                if tool in errors or turn >= count or (turn < 0 and not tool.startswith("plait")):
                    continue
                try:
                    found = run(tool, job)
                except Failed as error:
                    errors[tool] = str(error).strip().splitlines()[-1]
                    print(error, file=sys.stderr, flush=True)
                    continue
                if turn < 0:
                    first[tool] = found
                else:
                    runs[tool].append(found)
        for tool, found in runs.items():
            entry = {"suite": suite, "where": self.where, "size": size, "method": job.case.method, "tool": tool}
            entry |= {"experts": job.experts, "threads": job.threads, "load_before": load, "runs": found}
            entry |= {"first": first[tool]} if tool in first else {}
            self.results.add(entry | ({"error": errors[tool]} if tool in errors else {}))
            say(f"{suite:8} {size:8} {job.case.method:16} ×{job.experts:<2} {job.threads} threads {tool:18}", found)

    def job(self, method: str, models: Path, experts: int = 3, threads: int | None = None) -> Job:
        """One merge with the settings of this bench."""
        cold = self.where == "disk"
        return Job(CASES[method], models, experts, threads or self.threads, cold, self.memory, self.mergekit)


def say(what: str, runs: list[dict[str, Any]]) -> None:
    """A line of progress."""
    if not runs:
        return
    numbers = {k: statistics.median(r[k] for r in runs) for k in ("wall", "cpu", "rss", "work") if k in runs[0]}
    text = "  ".join(f"{k} {v / 2**20:.0f} MiB" if k == "rss" else f"{k} {v:.2f} s" for k, v in numbers.items())
    print(f"{what} {text}", file=sys.stderr, flush=True)


def methods(bench: Bench, sizes: Iterable[str], suite: str = "methods") -> None:
    """Every method of the list with a base and three experts."""
    for size in sizes:
        with checkpoints(bench.home, size, 3, bench.keep) as models:
            for method in bench.methods:
                job = bench.job(method, models)
                bench.rounds(suite, size, job, bench.tools_of(job))


def scaling(
    bench: Bench,
    names: Sequence[str],
    experts: Sequence[int],
    expert_size: str,
    threads: Sequence[int],
    thread_size: str,
    sizes: Sequence[str],
) -> None:
    """Cost with the number of experts, with threads, and with the size of the model."""
    tools = [t for t in bench.tools if t in ("plait", "floor")]
    if experts:
        with checkpoints(bench.home, expert_size, max(experts), bench.keep) as models:
            for name in names:
                for count in experts:
                    bench.rounds("experts", expert_size, bench.job(name, models, count), tools)
    if threads:
        with checkpoints(bench.home, thread_size, 3, bench.keep) as models:
            for name in names:
                for count in threads:
                    bench.rounds("threads", thread_size, bench.job(name, models, threads=count), tools)
    for size in sizes:
        with checkpoints(bench.home, size, 3, bench.keep) as models:
            for name in names:
                bench.rounds("size", size, bench.job(name, models), tools)


def tensors(bench: Bench, counts: Iterable[int], names: Sequence[str]) -> None:
    """Very many very small tensors."""
    tools = [t for t in bench.tools if t in ("plait", "floor")]
    for count in counts:
        with checkpoints(bench.home, f"{count}t", 3, bench.keep) as models:
            for name in names:
                bench.rounds("tensors", f"{count}t", bench.job(name, models), tools)


def startup(bench: Bench) -> None:
    """Commands that merge nothing, and the merge of a model of 100 MB from end to end."""
    commands: dict[str, list[str | Path]] = {"plait --help": [*PLAIT, "--help"], "plait methods": [*PLAIT, "methods"]}
    commands["python -c 'import torch'"] = [sys.executable, "-c", "import torch"]
    if bench.mergekit:
        commands["mergekit-yaml --help"] = [bench.mergekit / "bin" / "mergekit-yaml", "--help"]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(max(3, bench.runs)):
        for name, command in commands.items():
            runs[name].append(measure(command, {"HF_HUB_OFFLINE": "1"})[0])
    for name, found in runs.items():
        say(f"start-up {name:24}", found)
        bench.results.add({"suite": "startup", "tool": name, "runs": found})
    short = dataclasses.replace(bench, methods=["linear", "ties"])
    methods(short, [HUNDRED_MB], "100 MB")
