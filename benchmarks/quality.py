"""docs/quality.md from the results of studies: `python benchmarks/quality.py RESULTS… > docs/quality.md`.

Each RESULTS is a folder that `plait bench` wrote. What is said here is computed from them; the paragraphs between the
tables are in benchmarks/quality.md.in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from plait.bench.studies import markdown_table

#: mean accuracy of the merge of eight CLIP ViT-B/32 experts, as two projects publish it
LITERATURE: dict[str, tuple[str, dict[str, float]]] = {
    "FusionBench": (
        "FusionBench's documentation, CLIP ViT-B/32, eight image tasks, mean accuracy (individual 90.3)",
        {"linear": 66.5, "task_arithmetic": 68.0, "ties": 72.2, "iso_c": 82.8, "wudi": 84.5},
    ),
    "WUDI": (
        "the README of WUDI-Merging, the same eight tasks (individual 90.8)",
        {"task_arithmetic": 69.1, "ties": 72.4, "consensus_ta": 73.6, "pcb": 76.3, "wudi": 85.2},
    ),
}


def main(folders: Sequence[str]) -> str:
    """Return the page."""
    studies = [json.loads((Path(folder) / "results.json").read_text(encoding="utf-8")) for folder in folders]
    costs = [json.loads((Path(folder) / "costs.json").read_text(encoding="utf-8")) for folder in folders]
    template = (Path(__file__).parent / "quality.md.in").read_text(encoding="utf-8")
    sections = "\n".join(_section(study, cost) for study, cost in zip(studies, costs, strict=True))
    return template.replace("{{sections}}", sections).replace("{{literature}}", _literature(studies))


def _section(study: Mapping[str, Any], costs: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"## {study['title']}", ""]
    facts = list(dict.fromkeys(pool.get("description", "") for pool in study["pools"]))
    lines += [f"{fact[0].upper()}{fact[1:]}." for fact in facts if fact] + [""]
    lines += ["| | task | base | probe on the frozen base | expert |", "|---|---|---|---|---|"]
    for pool in study["pools"]:
        for expert, task in pool["tasks"].items():
            probe = pool["probes"].get(expert)
            shown = "" if probe is None else f"{probe:.3f}"
            own, base = pool.get("each", {}).get(expert, pool["own"][task]), pool["base"][task]
            name = f"{pool['arm']}, seed {pool['seed']}"
            lines.append(
                f"| {name} | {expert} ({own['metric']}) | {base['value']:.3f} | {shown} | {own['value']:.3f} |"
            )
    lines += ["", markdown_table(study).rstrip(), "", _verdict(study), "", _cost(costs), ""]
    return "\n".join(lines)


def _value(row: Mapping[str, Any]) -> Mapping[str, float]:
    return row["figures"][row["ranked_by"]]


def _verdict(study: Mapping[str, Any]) -> str:
    """What the table shows, in words that the numbers decide."""
    sound = [row for row in study["table"] if row["figures"]]
    best, plain = sound[0], next((row for row in sound if row["method"] == "linear"), None)
    parts = []
    if plain is not None and plain is not best:
        clear = _value(plain)["high"] < _value(best)["low"]
        parts.append(
            f"Plain averaging is {'clearly ' if clear else ''}below the best method, `{best['method']}`: "
            f"{100 * _value(plain)['value']:.1f} against {100 * _value(best)['value']:.1f}"
            f"{'' if clear else ', and their intervals overlap'}."
        )
    close = [row["method"] for row in sound[1:] if row["against_best"]["p_holm"] > 0.05]
    if close:
        named = ", ".join(f"`{name}`" for name in close)
        parts.append(f"Not told apart from the best on these examples (p above 0.05): {named}.")
    for pool_a, pool_b in combinations(range(len(study["pools"])), 2):
        tau, count = _agreement(_scores_of(study, sound, pool_a), _scores_of(study, sound, pool_b))
        seeds = [study["pools"][place]["seed"] for place in (pool_a, pool_b)]
        if count >= 3:
            parts.append(
                f"Seeds {seeds[0]} and {seeds[1]} order the {count} methods alike with Kendall's τ = {tau:.2f}."
            )
    return " ".join(parts)


def _scores_of(study: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], pool: int) -> dict[str, float]:
    found = {}
    for row in rows:
        for number in row["runs"]:
            run = study["runs"][number]
            if run["pool"] == pool and row["ranked_by"] in run["figures"]:
                found[row["method"]] = run["figures"][row["ranked_by"]]["value"]
    return found


def _agreement(one: Mapping[str, float], two: Mapping[str, float]) -> tuple[float, int]:
    """Kendall's τ-a over the methods that both have, and their number."""
    names = [name for name in one if name in two]
    signs = [
        (one[a] > one[b]) - (one[a] < one[b]) + 0.0 if two[a] > two[b] else (one[a] < one[b]) - (one[a] > one[b]) + 0.0
        for a, b in combinations(names, 2)
        if two[a] != two[b]
    ]
    return (sum(signs) / len(signs) if signs else 0.0), len(names)


def _cost(costs: Sequence[Mapping[str, Any]]) -> str:
    seconds = sum(cost["total_cpu_seconds"] for cost in costs)
    evaluations = sum(cost["evaluations"] for cost in costs)
    return f"The search took {evaluations} merges and evaluations, {seconds / 60:.0f} CPU minutes."


def _literature(studies: Sequence[Mapping[str, Any]]) -> str:
    head = ["", *(f"{study['title']}" for study in studies)]
    lines = [
        f"| {' | '.join(['method', *LITERATURE, *head[1:]])} |",
        f"|{'---|' * (1 + len(LITERATURE) + len(studies))}",
    ]
    names = list(dict.fromkeys(name for _, figures in LITERATURE.values() for name in figures))
    ours = [_scores_of_study(study) for study in studies]
    for name in names:
        cells = [f"{figures[name]:.1f}" if name in figures else "" for _, figures in LITERATURE.values()]
        cells += [f"{100 * found[name]:.1f}" if name in found else "" for found in ours]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    agreement = []
    for _, figures in LITERATURE.values():
        cells = []
        for found in ours:
            tau, count = _agreement(found, figures)
            cells.append(f"{tau:.2f} ({count})" if count >= 3 else "")
        agreement.append(cells)
    for label, cells in zip(LITERATURE, agreement, strict=True):
        lines.append(f"| *τ with {label}* | {' | '.join([''] * len(LITERATURE) + cells)} |")
    notes = [f"*{name}*: {source}." for name, (source, _) in LITERATURE.items()]
    return "\n".join([*lines, "", *notes])


def _scores_of_study(study: Mapping[str, Any]) -> dict[str, float]:
    """Each method's figure in the study's largest group."""
    sound = [row for row in study["table"] if row["figures"]]
    largest = max(row["experts"] for row in sound)
    return {row["method"]: _value(row)["value"] for row in sound if row["experts"] == largest}


if __name__ == "__main__":
    print(main(sys.argv[1:]), end="")
