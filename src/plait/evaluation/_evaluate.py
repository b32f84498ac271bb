"""Score a model on tasks: check everything, ask the cache, compute what is left."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from plait.errors import TaskError
from plait.evaluation._candidate import Candidate
from plait.evaluation._classifiers import ImageClassification, TextClassification
from plait.evaluation._external import Callable_, Command
from plait.evaluation._file_task import FileTask, Kind
from plait.evaluation._language import ExactMatch, LanguageModelling, MultipleChoice
from plait.evaluation._lm_eval import LmEval
from plait.evaluation._protocol import Task
from plait.evaluation._retrieval import Retrieval
from plait.evaluation._schema import read_task_file
from plait.evaluation._scores import Scores

__all__ = ["ScoreCache", "evaluate", "load_task"]

_KINDS: dict[str, Kind] = {
    "classification": TextClassification(),
    "image_classification": ImageClassification(),
    "language_modelling": LanguageModelling(),
    "multiple_choice": MultipleChoice(),
    "exact_match": ExactMatch(),
    "retrieval": Retrieval(),
    "lm_eval": LmEval(),
    "command": Command(),
    "callable": Callable_(),
}


def load_task(path: str | Path, limit: int | None = None) -> FileTask:
    """Read a task.

    Args:
        path: a task.json, or a folder with one.
        limit: score at most this many examples of a split.

    Raises:
        TaskError: the file is missing or wrong.
    """
    path = Path(path)
    path = path / "task.json" if path.is_dir() else path
    if limit is not None and limit < 1:
        raise TaskError(f"the limit is {limit}; at least one example must be scored.")
    file = read_task_file(path)
    return FileTask(path, file, _KINDS[file.kind], limit)


class ScoreCache:
    """Scores on disk by the content of the model, the task and the split.

    Args:
        folder: one file per entry; an entry is whole or absent.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def _path(self, model: Candidate, task: Task, split: str) -> Path:
        return self.folder / model.digest / f"{task.identity(split)}.json"

    def get(self, model: Candidate, task: Task, split: str) -> Scores | None:
        """The scores, if they are known."""
        try:
            return Scores.from_dict(json.loads(self._path(model, task, split).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None  # an entry that was damaged is computed again

    def put(self, model: Candidate, task: Task, split: str, scores: Scores) -> None:
        """Keep scores: written beside their place, then renamed into it."""
        path = self._path(model, task, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(scores.as_dict(), file)
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise


def evaluate(
    model: str | Path | Candidate,
    tasks: Sequence[Task],
    split: str = "test",
    *,
    cache: ScoreCache | None = None,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Scores]:
    """Score a model on tasks; everything is checked before anything is computed.

    Args:
        model: a Hugging Face folder.
        tasks: what to score it on, each with a name of its own.
        split: which split; choose on `validation`, report on `test`.
        cache: where known scores are found and new ones are kept.
        threads: threads of the computation, fixed because the last digits depend on them.
        progress: told the name of each task before it is scored.

    Returns:
        Name of the task → scores per example.

    Raises:
        TaskError: a task cannot be scored or the model does not fit; nothing has been computed.
        EvaluationError: scores that cannot be used.
    """
    candidate = model if isinstance(model, Candidate) else Candidate(model)
    if not tasks:
        raise TaskError("there is no task to score.")
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TaskError(f"two tasks are called {twice[0]!r}; give one of them another name.")
    for task in tasks:
        task.check(candidate, split)
    found: dict[str, Scores] = {}
    for task in tasks:
        scores = cache.get(candidate, task, split) if cache is not None else None
        if scores is None:
            if progress is not None:
                progress(task.name)
            from plait.evaluation._compute import fixed_threads

            with fixed_threads(threads):
                scores = task.score(candidate, split)
            if cache is not None:
                cache.put(candidate, task, split, scores)
        found[task.name] = scores
    return found
