"""Results as one JSON file, written again after every case, so that nothing measured is lost."""

from __future__ import annotations

import json
import statistics
from datetime import date
from pathlib import Path
from typing import Any

from perf.machine import describe, versions

__all__ = ["Results", "medians"]

KEY = ("suite", "where", "size", "method", "experts", "threads", "tool")


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """The median of every number of some runs; of phases too."""
    flat = [_flatten(run) for run in runs]
    keys = dict.fromkeys(key for f in flat for key in f)
    return {key: statistics.median(f[key] for f in flat if key in f) for key in keys}


def _flatten(run: dict[str, Any]) -> dict[str, float]:
    flat = {k: v for k, v in run.items() if isinstance(v, (int, float))}
    for group in ("phases", "phases_cpu"):
        flat |= {f"{group}.{k}": v for k, v in run.get(group, {}).items()}
    return flat


class Results:
    """The file of results."""

    def __init__(self, path: Path, mergekit: Path | None = None, settings: dict[str, Any] | None = None) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"results": []}
        if settings is not None:
            self.content["machine"] = describe()
            self.content["versions"] = self.content.get("versions", {}) | versions(mergekit)
            self.content["date"] = date.today().isoformat()
            self.content["settings"] = self.content.get("settings", {}) | settings

    def add(self, entry: dict[str, Any]) -> None:
        """Put in a case; an earlier measurement of the same one is replaced."""
        key = tuple(entry.get(k) for k in KEY)
        rest = [e for e in self.content["results"] if tuple(e.get(k) for k in KEY) != key]
        self.content["results"] = [*rest, entry | {"median": medians(entry["runs"])}]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(_rounded(self.content), indent=1) + "\n")
        new.replace(self.path)

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        """Cases with these values that ran."""
        return [e for e in self.content["results"] if e["runs"] and all(e.get(k) == v for k, v in wanted.items())]

    def one(self, **wanted: Any) -> dict[str, Any] | None:
        """The only case with these values, or nothing."""
        found = self.find(**wanted)
        return found[0] if found else None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
