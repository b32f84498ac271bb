"""Summaries made of summaries, and how a stand-in for values takes part in one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["ByKey", "Deferred", "deferrable", "rowwise"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Deferred:
    """Stands for a summary that is not known yet."""


def deferrable(function: _Function) -> _Function:
    """Let a stand-in for values (an object with a method `summarised`) note the summary instead of computing it."""
    kind = function.__name__  # type: ignore[attr-defined]

    @functools.wraps(function)
    def called(values: Any, *others: Any) -> Any:
        defer = getattr(values, "summarised", None)
        return function(values, *others) if defer is None else defer(kind, *others)

    return called  # type: ignore[return-value]


def rowwise(kind: str) -> Callable[[_Function], _Function]:
    """Let a stand-in for rows of values (an object with a method `in_rows`) note what is found in each row."""

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def called(values: Any, *others: Any) -> Any:
            defer = getattr(values, "in_rows", None)
            return function(values, *others) if defer is None else defer(kind, *others)

        return called  # type: ignore[return-value]

    return decorate


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
