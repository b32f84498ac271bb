"""Summaries by name: one survey over a model that keeps a total for each of its parts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Keyed"]


@dataclass(frozen=True)
class Keyed:
    """Key → summary; addition adds the summaries of equal keys and keeps the others."""

    items: Mapping[Hashable, Any] = field(default_factory=dict)

    def __add__(self, other: Keyed) -> Keyed:
        merged = dict(self.items)
        for key, value in other.items.items():
            merged[key] = merged[key] + value if key in merged else value
        return Keyed(merged)

    def __getitem__(self, key: Hashable) -> Any:
        return self.items[key]
