"""Scores of one model on one task: a number per example, because a mean alone can neither be resampled nor paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plait.errors import EvaluationError

__all__ = ["METRICS", "Scores"]

#: metric → whether a higher value is better
METRICS = {
    "accuracy": True,
    "accuracy_norm": True,
    "reciprocal_rank": True,
    "bits_per_byte": False,
    "cross_entropy": False,
}


@dataclass(frozen=True, eq=False)
class Scores:
    """Values of a metric, one per example, in the order of the split.

    Attributes:
        task: name of the task.
        metric: what the values are.
        values: float64 ["examples"].
        weights: what each example counts, float64 ["examples"]; bytes for bits per byte, otherwise 1.
        higher_is_better: whether more is better.
    """

    task: str
    metric: str
    values: NDArray[np.float64]
    weights: NDArray[np.float64] | None = None
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not len(self.values):
            raise EvaluationError(f"task {self.task!r} gave no scores.")
        if not np.isfinite(self.values).all():
            where = int(np.flatnonzero(~np.isfinite(self.values))[0])
            raise EvaluationError(
                f"task {self.task!r}: the score of example {where} is {self.values[where]}; scores must be finite "
                "numbers."
            )
        if self.weights is not None and (self.weights.shape != self.values.shape or not (self.weights > 0).all()):
            raise EvaluationError(f"task {self.task!r}: there must be one positive weight per score.")

    @classmethod
    def of(
        cls, task: str, metric: str, values: Sequence[float], weights: Sequence[float] | None = None, **others: Any
    ) -> Scores:
        """Make scores of plain numbers; the direction of a known metric is known."""
        others.setdefault("higher_is_better", METRICS.get(metric, True))
        heavy = None if weights is None else np.asarray(weights, dtype=np.float64)
        return cls(task, metric, np.asarray(values, dtype=np.float64), heavy, **others)

    @property
    def value(self) -> float:
        """The score of the whole split: the weighted mean."""
        if self.weights is None:
            return float(self.values.sum() / len(self.values))
        return float((self.values * self.weights).sum() / self.weights.sum())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, exact: floats are written with all their digits."""
        return {
            "task": self.task,
            "metric": self.metric,
            "value": self.value,
            "higher_is_better": self.higher_is_better,
            "values": self.values.tolist(),
            "weights": None if self.weights is None else self.weights.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scores:
        """Read what `as_dict` made."""
        return cls.of(
            data["task"], data["metric"], data["values"], data["weights"], higher_is_better=data["higher_is_better"]
        )
