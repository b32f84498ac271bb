"""The demo's three tasks: real strings that come with Python and with Babel, and nothing to download."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

from plait.bench._names import name_kinds, name_languages
from plait.bench._python_source import expressions
from plait.bench._split import Example, Row, Task, make_task
from plait.errors import PlaitError, suggest

__all__ = ["TASKS", "Example", "Task", "data_versions", "load_task"]


@dataclass(frozen=True)
class _Origin:
    """Where a task's rows come from, and how many are kept of each label."""

    rows: Callable[[], Iterator[Row]]
    train_cap: int
    eval_cap: int


# Short texts, because the time of the demo is the number of tokens that pass through the encoder.
_ORIGINS = {
    "py_expr": _Origin(expressions, train_cap=250, eval_cap=60),
    "name_lang": _Origin(name_languages, train_cap=400, eval_cap=60),
    "name_kind": _Origin(name_kinds, train_cap=900, eval_cap=150),
}
TASKS = tuple(_ORIGINS)


def load_task(name: str) -> Task:
    """Build a task's three splits from what is installed.

    Args:
        name: `py_expr` (a Python expression of the standard library → the kind of its outermost node, split by file),
            `name_lang` (a name in the Unicode CLDR → its language) or `name_kind` (the same → what it names), both
            split by the thing that is named, so that no translation of a test name is seen in training.

    Raises:
        PlaitError: the task is unknown, or what it is made from is not installed.
    """
    if name not in _ORIGINS:
        raise PlaitError(f"unknown task {name!r}{suggest(name, TASKS)}; tasks are {', '.join(TASKS)}.")
    origin = _ORIGINS[name]
    try:
        return make_task(name, origin.rows(), train_cap=origin.train_cap, eval_cap=origin.eval_cap)
    except ModuleNotFoundError as error:
        raise PlaitError(f"task {name!r} needs the package {error.name!r}; pip install 'plait[demo]'.") from error


def data_versions() -> dict[str, str]:
    """Versions of what the data are part of: another Python has another standard library, and so another task."""
    try:
        babel = metadata.version("babel")
    except metadata.PackageNotFoundError:
        babel = "none"
    return {"python": platform.python_version(), "babel": babel}
