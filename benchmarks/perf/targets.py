"""What the figures should be, and which of them are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from perf.cases import CASES
from perf.results import Results

__all__ = ["CPU_SHARE", "FLOORS", "Verdict", "mergekit_work", "verdicts"]

#: plait's seconds after start-up, in floors
FLOORS = {"one": 1.5, "survey": 3.5, "angle": 3.5}
_FIFTH, _TWENTIETH = 1 / 5, 1 / 20
#: plait's processor seconds after start-up as a share of mergekit's, after its own
CPU_SHARE = {
    **dict.fromkeys(("linear", "task_arithmetic", "slerp", "nuslerp"), _FIFTH),
    **dict.fromkeys(("ties", "breadcrumbs", "della", "sce", "karcher"), _TWENTIETH),
}
_GIB = 1 << 30


@dataclass(frozen=True)
class Verdict:
    """One figure beside its target."""

    what: str
    value: float
    limit: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is within its target."""
        return self.value <= self.limit


def mergekit_work(results: Results, median: dict[str, float]) -> float:
    """Processor seconds of mergekit without those of printing its help, where they were measured."""
    start = results.one(suite="startup", tool="mergekit-yaml --help")
    return median["cpu"] - (start["median"]["cpu"] if start else 0.0)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Every figure that has a target, in the order of the page."""
    for size in ("0.5b", "1b"):
        for method in CASES:
            yield from _method(results, size, method)
    yield from _memory(results)
    yield from _experts(results)
    help_ = results.one(suite="startup", tool="plait --help")
    if help_:
        yield Verdict("`plait --help`", help_["median"]["wall"], 0.3, " s")
    for entry in results.find(suite="100 MB", tool="plait"):
        yield Verdict(f"{entry['method']} of a 100 MB model, whole command", entry["median"]["wall"], 3.0, " s")
    yield from _tensors(results)


def _method(results: Results, size: str, method: str) -> Iterator[Verdict]:
    def of(tool: str) -> dict[str, Any] | None:
        entry = results.one(suite="methods", where="memory", size=size, method=method, tool=tool)
        return entry and entry["median"]

    floor, mergekit = of("floor"), of("mergekit")
    for tool in ("plait", "plait-as-mergekit"):
        ours = of(tool)
        if not ours:
            continue
        name = f"{method}{'' if tool == 'plait' else ' as in mergekit'}, {size}"
        passes = CASES[method].passes if tool == "plait" else "survey"  # a matched norm is surveyed
        if floor:
            yield Verdict(f"{name}: after start-up", ours["work"] / floor["work"], FLOORS[passes], " floors")
        # a survey of single tensors is part of the phase that merges, and then nothing tells the two apart
        if floor and passes == "angle" and ours.get("phases.survey", 0.0) > 0.05 * ours["work"]:
            merging = (ours["work"] - ours["phases.survey"]) / floor["work"]
            yield Verdict(f"{name}: once the angle is known", merging, FLOORS["one"], " floors")
        if mergekit:
            yield Verdict(f"{name}: wall time, share of mergekit's", ours["wall"] / mergekit["wall"], 1.0)
        if mergekit and method in CPU_SHARE and "work_cpu" in ours:
            share = ours["work_cpu"] / mergekit_work(results, mergekit)
            yield Verdict(f"{name}: processor time, share of mergekit's", share, CPU_SHARE[method])


def _memory(results: Results) -> Iterator[Verdict]:
    interpreter = results.one(suite="startup", tool="python -c 'import torch'")
    extra = interpreter["median"]["rss"] if interpreter else 0.0
    for size in ("1b", "8b/1"):
        for entry in results.find(suite="methods", where="memory", size=size, tool="plait"):
            peak = entry["median"]["rss"] / _GIB
            yield Verdict(f"{entry['method']}, {size}: peak memory", peak, 1 + extra / _GIB, " GiB")


def _experts(results: Results) -> Iterator[Verdict]:
    for many in results.find(suite="experts", experts=16, tool="plait"):
        few = results.one(suite="experts", experts=3, tool="plait", method=many["method"], size=many["size"])
        if few:
            ratio = many["median"]["work"] / few["median"]["work"]
            yield Verdict(f"{many['method']}: 16 experts against 3, time", ratio, 16 / 3 * 1.2, " ×")
            ratio = many["median"]["rss"] / few["median"]["rss"]
            yield Verdict(f"{many['method']}: 16 experts against 3, memory", ratio, 1.2, " ×")


def _tensors(results: Results) -> Iterator[Verdict]:
    for many in results.find(suite="tensors", size="36000t", tool="plait"):
        yield Verdict(f"{many['method']} of 36,000 tiny tensors", many["median"]["wall"], 10.0, " s")
        few = results.one(suite="tensors", size="8000t", tool="plait", method=many["method"])
        if few:
            growth = many["median"]["work"] / few["median"]["work"] / (36 / 8)
            yield Verdict(f"{many['method']}: growth from 8,000 to 36,000 over linear", growth, 1.2, " ×")
