"""What an inspection finds: a kind with an exit code of its own, how grave it is, one sentence, and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["EXIT_CODES", "Finding", "gravest"]

#: kind → exit code of `plait check`; the first of these that blocks a merge decides
EXIT_CODES = {
    "recipe": 2,
    "missing": 10,
    "unsafe": 11,
    "quantised": 12,
    "nonfinite": 13,
    "ancestry": 14,
    "locked": 15,
    "vocabulary": 16,
    "rope": 17,
    "settings": 18,
    "architecture": 19,
    "template": 20,
    "licence": 21,
    "resources": 22,
    "conflict": 23,
}
Level = Literal["blocks", "warns", "notes"]


@dataclass(frozen=True)
class Finding:
    """One thing that an inspection found.

    Attributes:
        kind: one of `EXIT_CODES`.
        level: `blocks` a merge, `warns` of a worse result than expected, or `notes` a fact.
        model: the model's name in the recipe; empty where several are meant.
        sentence: what was found.
        remedy: what to do about it.
    """

    kind: str
    level: Level
    model: str
    sentence: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {**asdict(self), "exit_code": EXIT_CODES[self.kind]}


def gravest(findings: Iterable[Finding], levels: Iterable[Level]) -> Finding | None:
    """Return the first finding of one of these levels, by the order of `EXIT_CODES`; None without any."""
    wanted, order = set(levels), list(EXIT_CODES)
    fitting = sorted((f for f in findings if f.level in wanted), key=lambda f: order.index(f.kind))
    return fitting[0] if fitting else None
