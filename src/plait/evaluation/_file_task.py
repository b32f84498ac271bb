"""A task that is described by a file: its data are read and checked once, its kind says how it is scored."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from plait.errors import TaskError, suggest
from plait.evaluation._candidate import Candidate
from plait.evaluation._schema import TaskFile, read_rows
from plait.evaluation._scores import Scores

__all__ = ["FileTask", "Kind"]

_CODE = 1  # raise when a change of code changes scores: what caches hold is then not read


class Kind:
    """How one kind of task is scored; a subclass per kind.

    Attributes:
        metrics: what it can measure, the default first; empty if whoever scores names the metric.
        columns: what every row of a split must have.
    """

    metrics: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[dict[str, type]] = {}

    def files(self, task: FileTask, split: str) -> list[Path]:
        """Files that the scores depend on."""
        return [task.split_file(split), *([task.head_file] if task.head_file else [])]

    def check(self, task: FileTask, model: Candidate, split: str) -> None:
        """Raise TaskError if the data or the model do not fit."""
        raise NotImplementedError

    def score(self, task: FileTask, model: Candidate, split: str) -> Scores:
        """Score the model."""
        raise NotImplementedError


@dataclass(frozen=True)
class FileTask:
    """A task on disk.

    Attributes:
        path: its task.json.
        file: what that says.
        kind: how it is scored.
        limit: score only this many examples of a split; None for all.
    """

    path: Path
    file: TaskFile
    kind: Kind
    limit: int | None = None
    _rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _identities: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.file.name

    @property
    def metric(self) -> str:
        """What is measured."""
        return self.file.metric or (self.kind.metrics[0] if self.kind.metrics else "score")

    def limited(self, limit: int | None) -> FileTask:
        """The same task with at most so many examples of each split."""
        return dataclasses.replace(self, limit=limit)

    def measuring(self, metric: str) -> FileTask:
        """The same task with another metric of its kind."""
        return dataclasses.replace(self, file=self.file.model_copy(update={"metric": metric}))

    @property
    def chooser_split(self) -> str:
        """The split of a task that was given to choose settings by: `validation` if it has one, else `test`."""
        return "validation" if "validation" in self.file.splits else "test"

    def split_file(self, split: str) -> Path:
        """Path of a split.

        Raises:
            TaskError: the task has no such split.
        """
        if split not in self.file.splits:
            known = ", ".join(self.file.splits) or "none"
            hint = suggest(split, self.file.splits)
            raise TaskError(f"task {self.name!r} has no split {split!r}.{hint} Its splits are {known}.")
        return self.path.parent / self.file.splits[split]

    @property
    def head_file(self) -> Path | None:
        """Path of the classifier that belongs to the task and not to the model."""
        return None if self.file.head is None else (self.path.parent / self.file.head).resolve()

    def rows(self, split: str) -> list[dict[str, Any]]:
        """The examples that are scored."""
        if split not in self._rows:
            rows = read_rows(self.split_file(split), self.kind.columns)
            self._rows[split] = [rows[i] for i in self.chosen(len(rows))]
        return self._rows[split]

    def chosen(self, count: int) -> list[int]:
        """Which of so many examples are scored: all, or `limit` of them, drawn once and for all.

        Drawn, not at even distances: rows whose labels take turns would all get one label.
        """
        if self.limit is None or self.limit >= count:
            return list(range(count))
        return sorted(random.Random(f"{count}/{self.limit}").sample(range(count), self.limit))

    def identity(self, split: str) -> str:
        """Hash of the description, of the split's content, of the head and of the limit."""
        if split not in self._identities:
            facts = self.file.model_dump_json(exclude={"splits", "head", "description"})
            state = xxhash.xxh3_128(f"{_CODE} {facts} {split} {self.limit}".encode())
            for path in self.kind.files(self, split):
                try:
                    state.update(path.read_bytes())
                except OSError as error:
                    raise TaskError(f"task {self.name!r}: {path} cannot be read: {error.strerror}.") from None
            self._identities[split] = state.hexdigest()
        return self._identities[split]

    def check(self, model: Candidate, split: str) -> None:
        """Raise TaskError unless the split can be scored and the model fits."""
        if self.kind.metrics and self.metric not in self.kind.metrics:
            raise TaskError(
                f"task {self.name!r}: a task of kind {self.file.kind} has no metric {self.metric!r}; "
                f"it has {', '.join(self.kind.metrics)}."
            )
        self.kind.check(self, model, split)

    def score(self, model: Candidate, split: str) -> Scores:
        """Score the model on every example."""
        return self.kind.score(self, model, split)
