"""What the page of a study shows, from its results: rows with their recipes, sweeps, references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

__all__ = ["page_data"]

_PERCENT = ("normalised", "gain", "forgetting", "beats_base", "held_out")
_TITLES = {
    "normalised": "% of the experts",
    "gain": "% of the gain",
    "raw": "mean score",
    "forgetting": "% forgotten",
    "over_best": "above the best expert",
    "beats_base": "% of merges above the base",
    "held_out": "held out, % of base",
}
_CHOSEN = {
    "auto": "score by the experts, or for losses share of the gain",
    "normalised": "score by the experts",
    "gain": "share of the gain",
    "raw": "mean score",
}


class _Recipes:
    """Recipes as YAML, each once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}

    def add(self, recipe: Mapping[str, Any] | None) -> int | None:
        """Place of a recipe's text."""
        if recipe is None:
            return None
        text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100)
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]


def page_data(results: Mapping[str, Any], costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Plain data for the page's script.

    Args:
        results: a study's results.json.
        costs: its costs.json.
    """
    recipes = _Recipes()
    by_run = {cost["run"]: cost for cost in costs}
    groups: dict[tuple[str, int], dict[str, Any]] = {}
    for row in results["table"]:
        key = row["arm"], row["experts"]
        label = f"{row['arm']}, {row['experts']} experts"
        group = groups.setdefault(key, {"label": label, "ranked_by": row["ranked_by"], "rows": []})
        group["rows"].append(_row(row, results, by_run, recipes))
    for group in groups.values():
        runs = [results["runs"][n] for row in group["rows"] for n in row["numbers"]]
        group["references"] = _references(runs, results["pools"])
        group["tasks"] = list(dict.fromkeys(task for row in group["rows"] for task in row["tasks"]))
        group["sweeps"] = _sweeps(runs, results["pools"], recipes)
    plane = results.get("landscape")
    if plane is not None:
        points = [{**p, "recipe": recipes.add(p["recipe"])} for p in plane["points"]]
        lines = [
            {**li, "points": [{**p, "recipe": recipes.add(p["recipe"])} for p in li["points"]]} for li in plane["lines"]
        ]
        plane = {**plane, "points": points, "lines": lines}
    present = [name for name in _TITLES if any(name in row["figures"] for row in results["table"])]
    return {
        "title": results["title"],
        "description": results["description"],
        "chosen_by": _CHOSEN[results["study"]["choose_by"]],
        "figures": {
            name: {"title": _TITLES[name], "factor": 100 if name in _PERCENT else 1, **results["figures"][name]}
            for name in present
        },
        "groups": list(groups.values()),
        "pools": [_pool(pool) for pool in results["pools"]],
        "landscape": plane,
        "layers": results.get("layers"),
        "recipes": recipes.texts,
        "bootstrap": results["study"]["bootstrap"],
        "subsets": results["study"]["subsets"] is not None,
    }


def _row(
    row: Mapping[str, Any], results: Mapping[str, Any], costs: Mapping[int, Mapping[str, Any]], recipes: _Recipes
) -> dict[str, Any]:
    runs = [results["runs"][n] for n in row["runs"]]
    shares: dict[str, list[float]] = {}
    for run in runs:
        own = {results["pools"][run["pool"]]["tasks"].get(name) for name in run["subset"]} - {None}
        for task, score in run["tasks"].items():
            if own and task not in own:
                continue
            value = _share(score["value"], score["expert"], score["metric"]) if own else score["value"]
            if value is not None:
                shares.setdefault(task, []).append(value)
    known = [costs[n] for n in row["runs"] if n in costs]
    return {
        "method": row["method"],
        "rank": row["rank"],
        "settings": row["settings"],
        "figures": row["figures"],
        "p": row.get("against_best", {}).get("p_holm"),
        "error": row["error"],
        "numbers": row["runs"],
        "runs": [
            {
                "label": _where(run, results["pools"]),
                "setting": run["setting"],
                "figures": {name: one["value"] for name, one in run["figures"].items()},
                "recipe": recipes.add(run["recipe"]),
            }
            for run in runs
        ],
        "tasks": {task: sum(values) / len(values) for task, values in shares.items()},
        "cost": {
            "merge": _mean(cost["merge_seconds"] for cost in known),
            "search": _mean(cost["total_seconds"] for cost in known),
            "bytes": _mean(cost["merge_bytes"] for cost in known),
            "evaluations": _mean(cost["evaluations"] for cost in known),
        },
    }


def _where(run: Mapping[str, Any], pools: Sequence[Mapping[str, Any]]) -> str:
    pool = pools[run["pool"]]
    among = "" if len(run["subset"]) == len(pool["experts"]) else f", {' + '.join(run['subset'])}"
    return f"seed {pool['seed']}{among}"


def _share(value: float, expert: float | None, metric: str) -> float | None:
    """A score by the expert's; its inverse for losses."""
    if not expert or not value:
        return None if not expert else 0.0
    return expert / value if metric in ("bits_per_byte", "cross_entropy") else value / expert


def _mean(values: Any) -> float | None:
    found = [float(value) for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _references(runs: Sequence[Mapping[str, Any]], pools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What stands without merging, as shares of the experts, over the pools of a group."""
    used = [pools[place] for place in sorted({run["pool"] for run in runs})]
    base: list[float] = []
    probe: list[float] = []
    for pool in used:
        firsts: dict[str, str] = {}  # several experts may have one task, which is measured by the first
        for expert, task in pool["tasks"].items():
            firsts.setdefault(task, expert)
        for task, expert in firsts.items():
            own = pool["own"].get(task)
            if own is None:
                continue
            share = _share(pool["base"][task]["value"], own["value"], own["metric"])
            base += [] if share is None else [share]
            if expert in pool["probes"] and own["value"]:
                probe.append(pool["probes"][expert] / own["value"])
    return {
        "base": {"normalised": sum(base) / len(base), "gain": 0.0} if base else {},
        "probe": {"normalised": sum(probe) / len(probe)} if probe else {},
    }


def _sweeps(
    runs: Sequence[Mapping[str, Any]], pools: Sequence[Mapping[str, Any]], recipes: _Recipes
) -> list[dict[str, Any]]:
    """Figure on validation against the number that was swept, one line per run and per value of anything else."""
    lines: list[dict[str, Any]] = []
    for run in runs:
        numeric = [
            key
            for key in (run["trials"][0]["setting"] if run["trials"] else {})
            if all(isinstance(t["setting"].get(key), int | float) for t in run["trials"])
            and len({t["setting"][key] for t in run["trials"]}) > 1
        ]
        if not numeric:
            continue
        along = "lambda" if "lambda" in numeric else numeric[0]
        parts: dict[str, list[dict[str, Any]]] = {}
        for trial in run["trials"]:
            rest = ", ".join(f"{key} {value}" for key, value in trial["setting"].items() if key != along)
            point = {
                "x": trial["setting"][along],
                "y": trial["figure"],
                "recipe": recipes.add(trial["recipe"]),
                "chosen": trial["setting"] == run["setting"],
            }
            parts.setdefault(rest, []).append(point)
        for rest, points in parts.items():
            where = _where(run, pools)
            points.sort(key=lambda point: point["x"])
            lines.append({"method": run["method"], "along": along, "rest": rest, "where": where, "points": points})
    return lines


def _pool(pool: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("arm", "seed", "digest", "experts", "testbed", "size", "description")
    return {key: pool[key] for key in keys if key in pool}
