"""Numbers and tables as the page shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["factor", "mib", "number", "ratio", "seconds", "table"]

NONE = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, or nothing without rows."""
    body = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|"
    return "\n".join(["| " + " | ".join(head) + " |", rule, *body]) if body else ""


def seconds(value: float | None) -> str:
    """Seconds with three digits."""
    if value is None:
        return NONE
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def factor(value: float | None, limit: float | None = None) -> str:
    """A factor; bold where it is above its limit."""
    if value is None:
        return NONE
    text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 1.95 else f"{value:.2f}"
    return f"**{text}**" if limit is not None and value > limit else text


def mib(value: float | None) -> str:
    """Bytes in MiB."""
    return NONE if value is None else f"{value / 2**20:,.0f}"


def ratio(a: float | None, b: float | None) -> float | None:
    """The quotient, where there are both."""
    return None if a is None or not b else a / b


def number(value: Any) -> float:
    """What a label such as 0.5b counts, for sorting."""
    found = re.match(r"[\d.]+", str(value))
    return float(found[0]) if found else 0.0
