"""What a task is, for everything that scores models."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from plait.evaluation._candidate import Candidate
from plait.evaluation._scores import Scores

__all__ = ["Task"]


@runtime_checkable
class Task(Protocol):
    """Something that gives a model a score per example."""

    @property
    def name(self) -> str:
        """How tables call it."""
        ...

    def identity(self, split: str) -> str:
        """Hash of all that a model's scores on a split depend on beside the model; equal hashes, equal scores."""
        ...

    def check(self, model: Candidate, split: str) -> None:
        """Raise TaskError unless the split is there and the model fits; loads no weights."""
        ...

    def score(self, model: Candidate, split: str) -> Scores:
        """Score the model; called after `check`."""
        ...
