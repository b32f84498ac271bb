"""Summaries made of summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ByKey"]


@dataclass(frozen=True)
class ByKey:
    """One summary per key; addition goes key by key, so that one survey of a model can keep its parts apart."""

    items: Mapping[Any, Any]

    def __add__(self, other: ByKey) -> ByKey:
        total = dict(self.items)
        for key, item in other.items.items():
            total[key] = total[key] + item if key in total else item
        return ByKey(total)

    def __getitem__(self, key: Any) -> Any:
        return self.items[key]
