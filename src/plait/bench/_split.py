"""From labelled strings with sources to splits that share neither a source nor a string."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Example", "Row", "Task", "digest", "make_task", "split_of"]

# A source whose hash, as a fraction, is below the first is test, below the second validation.
_TEST, _VALIDATION = 0.25, 0.40
_MIN_TRAIN, _MIN_EVAL = 50, 10  # a label with fewer examples is left out


class Row(NamedTuple):
    """One string as it was found: `source` is what must not be shared between splits."""

    source: str
    text: str
    label: str


class Example(NamedTuple):
    """One string and the index of its label."""

    text: str
    label: int


@dataclass(frozen=True)
class Task:
    """A classification task; each split is in an arbitrary but fixed order, so that a prefix is a sample."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    def __str__(self) -> str:
        """Name, classes and sizes in one line."""
        sizes = f"{len(self.train)} train / {len(self.validation)} validation / {len(self.test)} test"
        return f"{self.name}: {len(self.labels)} classes, {sizes}"


def make_task(name: str, rows: Iterable[Row], *, train_cap: int, eval_cap: int) -> Task:
    """Drop repeated and ambiguous strings, split by the hash of the source, keep at most a cap per label and split.

    Everything is ordered by SHA-256, never by `hash()` or a set's order: the result is the same in every process.

    Args:
        name: name of the task.
        rows: labelled strings; of equal ones the first is kept.
        train_cap: most training examples of a label.
        eval_cap: most validation and most test examples of a label.
    """
    splits = _split(_unambiguous(rows))
    smallest = {"train": _MIN_TRAIN, "validation": _MIN_EVAL, "test": _MIN_EVAL}
    labels = sorted(splits["train"])
    labels = [y for y in labels if all(len(splits[s][y]) >= least for s, least in smallest.items())]

    def examples(split: str, cap: int) -> tuple[Example, ...]:
        kept = [Example(t, i) for i, y in enumerate(labels) for t in sorted(splits[split][y], key=digest)[:cap]]
        return tuple(sorted(kept, key=lambda example: digest(example.text)))

    return Task(
        name, tuple(labels), examples("train", train_cap), examples("validation", eval_cap), examples("test", eval_cap)
    )


def _split(rows: Iterable[Row]) -> dict[str, defaultdict[str, list[str]]]:
    """Split → label → strings."""
    splits = {split: defaultdict[str, list[str]](list) for split in ("train", "validation", "test")}
    for row in rows:
        splits[split_of(row.source)][row.label].append(row.text)
    return splits


def split_of(source: str) -> str:
    """The split that everything from a source belongs to."""
    place = int(digest(source)[:8], 16) / 16**8
    return "test" if place < _TEST else "validation" if place < _VALIDATION else "train"


def _unambiguous(rows: Iterable[Row]) -> list[Row]:
    """One row per string, without the strings that stand under more than one label."""
    first: dict[str, Row] = {}
    ambiguous: set[str] = set()
    for row in rows:
        key = _fold(row.text)
        if first.setdefault(key, row).label != row.label:
            ambiguous.add(key)
    return [row for key, row in first.items() if key not in ambiguous]


def _fold(text: str) -> str:
    """What an uncased tokenizer that strips accents makes of a string: texts that differ only there are equal."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).split())


def digest(text: str) -> str:
    """SHA-256 of a text: an order that is the same in every process."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
