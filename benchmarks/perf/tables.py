"""Tables of the page in Markdown."""

from __future__ import annotations

from typing import Any

from perf.cases import CASES
from perf.format import factor, mib, number, ratio, seconds, table
from perf.results import Results
from perf.targets import CPU_SHARE, FLOORS, mergekit_work, verdicts

__all__ = [
    "costs", "disk", "experts", "machine", "memory", "misses",
    "phases", "sizes", "startup", "tensors", "threads", "times",
]  # fmt: skip

_PHASES = ("start", "plan", "compile", "survey", "merge", "finish")
Median = dict[str, float]


def _of(results: Results, tool: str, **wanted: Any) -> Median:
    entry = results.one(tool=tool, **wanted)
    return entry["median"] if entry else {}


def machine(results: Results) -> str:
    """Processor, memory, versions, in one paragraph."""
    m, v, s = (results.content.get(k, {}) for k in ("machine", "versions", "settings"))
    if not m:
        return ""
    vector = ", ".join(m["vector_instructions"])
    lines = [
        f"- {m.get('processor', '?')}, {m['cores']} cores of {m.get('threads_per_core', '?')} thread"
        + (", a virtual machine" if "virtualised_by" in m else ""),
        f"- {m['architecture']}, {vector or 'vector instructions not listed'}; last-level cache {m.get('l3', '?')}",
        f"- {m['memory_gib']} GiB of memory; {m['system']} {m['kernel']}",
        f"- Python {v['python']}, torch {v['torch']}, numpy {v['numpy']}, safetensors {v['safetensors']}",
        f"- {results.content['date']}: {s['threads']} threads for every tool, {s['runs']} runs, budget {s['memory']}",
    ]
    if "mergekit environment" in v:
        lines.insert(-1, f"- in mergekit's own environment: {v['mergekit environment']}")
    return "\n".join(lines)


def times(results: Results, size: str, where: str = "memory") -> str:
    """Wall seconds of every method."""
    rows = []
    for method, case in CASES.items():
        at = {"suite": "methods", "size": size, "where": where, "method": method}
        floor, ours, same, theirs = (_of(results, t, **at) for t in ("floor", "plait", "plait-as-mergekit", "mergekit"))
        if ours or theirs:
            limit = FLOORS[case.passes]
            rows.append([
                f"`{method}`", seconds(floor.get("work")), seconds(ours.get("work")),
                factor(ratio(ours.get("work"), floor.get("work")), limit), factor(limit),
                seconds(ours.get("wall")), seconds(same.get("wall")), seconds(theirs.get("wall")),
                factor(ratio(theirs.get("wall"), ours.get("wall"))),
            ])  # fmt: skip
    head = ["method", "floor s", "plait after start-up s", "in floors", "target", "plait s", "as in mergekit s"]
    return table([*head, "mergekit s", "mergekit / plait"], rows)


def costs(results: Results, size: str, where: str = "memory") -> str:
    """Processor seconds and memory of every method."""
    rows = []
    for method in CASES:
        at = {"suite": "methods", "size": size, "where": where, "method": method}
        ours, same, theirs = (_of(results, t, **at) for t in ("plait", "plait-as-mergekit", "mergekit"))
        if ours or theirs:
            limit = 1 / CPU_SHARE[method] if method in CPU_SHARE else None
            work = mergekit_work(results, theirs) if theirs else None
            times_less = ratio(work, ours.get("work_cpu"))
            missed = limit is not None and times_less is not None and times_less < limit
            text = factor(times_less)
            rows.append([
                f"`{method}`", seconds(ours.get("cpu")), seconds(same.get("cpu")), seconds(theirs.get("cpu")),
                seconds(ours.get("work_cpu")), seconds(work),
                f"**{text}**" if missed else text, factor(limit),
                mib(ours.get("rss")), mib(ours.get("private")), mib(theirs.get("rss")), mib(theirs.get("private")),
            ])  # fmt: skip
    head = [
        "method",
        "plait CPU s",
        "as in mergekit",
        "mergekit CPU s",
        "plait after start-up",
        "mergekit after start-up",
    ]
    head += ["mergekit / plait", "target", "plait peak MiB", "private", "mergekit peak MiB", "private"]
    return table(head, rows)


def phases(results: Results, size: str) -> str:
    """Where plait's time goes, as it says itself."""
    rows = []
    for method in CASES:
        ours = _of(results, "plait", suite="methods", size=size, where="memory", method=method)
        if any(key.startswith("phases.") for key in ours):
            rows.append(
                [f"`{method}`", *(seconds(ours.get(f"phases.{p}")) for p in _PHASES), seconds(ours.get("exit"))]
            )
    return table(["method", *(f"{p} s" for p in _PHASES), "exit s"], rows)


def disk(results: Results, size: str) -> str:
    """One run on a disk, inputs not cached."""
    return times(results, size, "disk")


def memory(results: Results, size: str) -> str:
    """Peaks of plait alone."""
    rows = []
    for method in CASES:
        ours = _of(results, "plait", suite="methods", size=size, where="memory", method=method)
        if ours:
            rows.append([f"`{method}`", mib(ours["rss"]), mib(ours["private"]), seconds(ours["wall"])])
    return table(["method", "peak MiB", "private", "wall s"], rows)


def _scale(results: Results, suite: str, column: str, unit: str = "", **only: str) -> str:
    rows = []
    found = results.find(suite=suite, tool="plait", **only)
    for entry in sorted(found, key=lambda e: (list(CASES).index(e["method"]), number(e[column]))):
        at = {k: entry[k] for k in ("suite", "size", "method", "experts", "threads")}
        floor, ours = _of(results, "floor", **at), entry["median"]
        label = str(entry[column]).removesuffix("t") if column == "size" and unit else str(entry[column])
        numbers = [seconds(ours["wall"]), seconds(ours["work"]), seconds(floor.get("work"))]
        floors = factor(ratio(ours["work"], floor.get("work")))
        rows.append([f"`{entry['method']}`", label, *numbers, floors, seconds(ours["cpu"]), mib(ours["rss"])])
    head = ["method", unit or column, "plait s", "after start-up s", "floor s", "in floors", "CPU s", "peak MiB"]
    return table(head, rows)


def experts(results: Results, size: str) -> str:
    """Cost with the number of experts."""
    return _scale(results, "experts", "experts", size=size)


def threads(results: Results, size: str) -> str:
    """Cost with threads."""
    return _scale(results, "threads", "threads", size=size)


def sizes(results: Results) -> str:
    """Cost with the size of the model."""
    return _scale(results, "size", "size")


def tensors(results: Results) -> str:
    """Cost with the number of tensors."""
    return _scale(results, "tensors", "size", "tensors")


def startup(results: Results) -> str:
    """Commands that merge nothing, and a small merge."""
    rows = [
        [f"`{e['tool']}`", seconds(e["median"]["wall"]), seconds(e["median"]["cpu"]), mib(e["median"]["rss"])]
        for e in results.find(suite="startup")
    ]
    for e in results.find(suite="100 MB"):
        if e["tool"] in ("plait", "mergekit"):
            m = e["median"]
            what = f"{e['tool']}: `{e['method']}`, base and three experts of 100 MB"
            rows.append([what, seconds(m["wall"]), seconds(m["cpu"]), mib(m["rss"])])
    return table(["command", "wall s", "CPU s", "peak MiB"], rows)


def misses(results: Results) -> str:
    """How many targets are met, and the list of those that are not."""
    found = list(verdicts(results))
    if not found:
        return ""
    missed = [v for v in found if not v.met]
    lines = [f"{len(found) - len(missed)} of {len(found)} figures meet their target."]
    if missed:
        lines += ["", "| figure | measured | target |", "|---|---:|---:|"]
        lines += [f"| {v.what} | {v.value:.2f}{v.unit} | {v.limit:.2f}{v.unit} |" for v in missed]
    return "\n".join(lines)
