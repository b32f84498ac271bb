"""Scorers that are not ours: a Python function, a shell command; each gives a number per example."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from plait.errors import EvaluationError, TaskError
from plait.evaluation._candidate import Candidate
from plait.evaluation._file_task import FileTask, Kind
from plait.evaluation._scores import Scores

__all__ = ["Callable_", "Command", "FunctionTask"]

_SHOWN = 2000  # characters of a failed command's last words


def _as_scores(task: str, found: Any, metric: str, higher_is_better: bool | None, origin: str) -> Scores:
    """Scores of a list of numbers, or of {"scores": […], "weights": […], "metric": …, "higher_is_better": …}."""
    data: Mapping[str, Any] = found if isinstance(found, Mapping) else {"scores": found}
    values, weights = data.get("scores"), data.get("weights")
    try:
        values = [float(value) for value in values]  # type: ignore[union-attr]
        weights = None if weights is None else [float(value) for value in weights]
    except (TypeError, ValueError):
        raise EvaluationError(
            f"{origin} gave no scores: what is wanted is a list with a number per example, or an object with such a "
            "list "
            "under 'scores'."
        ) from None
    higher = data.get("higher_is_better", higher_is_better)
    more = {} if higher is None else {"higher_is_better": bool(higher)}
    return Scores.of(task, str(data.get("metric", metric)), values, weights, **more)


class FunctionTask:
    """Any Python function as a task.

    Args:
        name: name of the task.
        function: called with the model's folder and the split; returns a number per example.
        metric: what the numbers are.
        higher_is_better: whether more is better.
        version: changed whenever the function changes, so that old scores are not used.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Path, str], Any],
        *,
        metric: str = "score",
        higher_is_better: bool = True,
        version: str = "",
    ) -> None:
        self.name, self._function, self._metric = name, function, metric
        self._higher_is_better, self._version = higher_is_better, version

    def identity(self, split: str) -> str:
        """Hash of the names and the version; what the function computes cannot be hashed."""
        function = f"{self._function.__module__}:{getattr(self._function, '__qualname__', repr(self._function))}"
        facts = [self.name, function, self._metric, self._higher_is_better, self._version, split]
        return xxhash.xxh3_128(json.dumps(facts).encode()).hexdigest()

    def check(self, model: Candidate, split: str) -> None:
        """Nothing can be known before the function is called."""
        del model, split

    def score(self, model: Candidate, split: str) -> Scores:
        """Call the function."""
        found = self._function(model.folder, split)
        return _as_scores(self.name, found, self._metric, self._higher_is_better, f"the function of task {self.name!r}")


class Callable_(Kind):
    """A task file that names a function: "callable": "package.module:function"."""

    def _find(self, task: FileTask) -> Any:
        module, _, name = (task.file.callable or "").partition(":")
        if not (module and name):
            raise TaskError(
                f"task {task.name!r}: 'callable' must be 'package.module:function', not {task.file.callable!r}."
            )
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise TaskError(f"task {task.name!r}: {task.file.callable} cannot be found: {error}.") from None

    def files(self, task: FileTask, split: str) -> list[Path]:
        """The module's source, and the split's file if the task has one."""
        source = getattr(sys.modules.get(self._find(task).__module__), "__file__", None)
        data = [task.split_file(split)] if split in task.file.splits else []
        return data + ([Path(source)] if source else [])

    def check(self, task: FileTask, model: Candidate, split: str) -> None:
        """Look for the function."""
        if not callable(self._find(task)):
            raise TaskError(f"task {task.name!r}: {task.file.callable} is not a function.")

    def score(self, task: FileTask, model: Candidate, split: str) -> Scores:
        """Call the function with the model's folder and the split."""
        found = self._find(task)(model.folder, split)
        return _as_scores(task.name, found, task.metric, task.file.higher_is_better, str(task.file.callable))


class Command(Kind):
    """A task file with a shell command; it runs in the task's folder and prints the scores as JSON, last."""

    def files(self, task: FileTask, split: str) -> list[Path]:
        """What the command names that lies in the task's folder, and the split's file if the task has one."""
        try:
            words = shlex.split(task.file.command or "")
        except ValueError:
            return []
        named = [path for word in words if (path := task.path.parent / word).is_file()]
        return named + ([task.split_file(split)] if split in task.file.splits else [])

    def check(self, task: FileTask, model: Candidate, split: str) -> None:
        """Look for the place of the model in the command."""
        if "{model}" not in (task.file.command or ""):
            raise TaskError(f"task {task.name!r}: 'command' must hold {{model}}, where the model's folder will stand.")

    def score(self, task: FileTask, model: Candidate, split: str) -> Scores:
        """Run the command and read what it prints."""
        text = (task.file.command or "").replace("{model}", shlex.quote(str(model.folder.resolve())))
        text = text.replace("{split}", shlex.quote(split))
        done = subprocess.run(text, shell=True, cwd=task.path.parent, capture_output=True, text=True)
        origin = f"the command of task {task.name!r}"
        if done.returncode:
            raise EvaluationError(f"{origin} failed with exit code {done.returncode}:\n{done.stderr.strip()[-_SHOWN:]}")
        lines = done.stdout.strip().splitlines()
        try:
            found = json.loads(lines[-1] if lines else "")
        except ValueError:
            raise EvaluationError(
                f"{origin} printed no JSON on its last line: {(lines or ['nothing'])[-1][:200]!r}."
            ) from None
        return _as_scores(task.name, found, task.metric, task.file.higher_is_better, origin)
