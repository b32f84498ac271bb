"""The page: a template with prose, and tables made of the results."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from perf import tables
from perf.results import Results

__all__ = ["report"]

TEMPLATE = Path(__file__).with_name("performance.md.in")
TABLES: dict[str, Callable[..., str]] = {
    "machine": tables.machine,
    "times": tables.times,
    "costs": tables.costs,
    "phases": tables.phases,
    "disk": tables.disk,
    "memory": tables.memory,
    "experts": tables.experts,
    "threads": tables.threads,
    "sizes": tables.sizes,
    "tensors": tables.tensors,
    "startup": tables.startup,
    "verdicts": tables.misses,
}


def report(results: Results) -> str:
    """Fill `{{table argument}}` in the template; a table without results says so."""

    def fill(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        return TABLES[name](results, *arguments) or "Not measured."

    return re.sub(r"\{\{(.+?)\}\}", fill, TEMPLATE.read_text(encoding="utf-8"))
