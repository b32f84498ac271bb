"""One model on tasks and testbeds, beside the base and the experts where those are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plait.bench._folder import MANIFEST, TestbedFolder, read_testbed
from plait.errors import EvaluationError, TaskError
from plait.evaluation import (
    Candidate,
    FileTask,
    Interval,
    Resamples,
    ScoreCache,
    Scores,
    evaluate,
    forgetting,
    gain,
    load_task,
    normalised,
    raw,
    read_lm_eval,
)
from plait.reports import CardResult

__all__ = ["ModelScores", "TaskRow", "score_model"]


@dataclass(frozen=True)
class TaskRow:
    """A model on one task.

    Attributes:
        task: name of the task.
        kind: kind of the task.
        split: which split.
        metric: what was measured.
        examples: how many examples.
        interval: the score and its 95 % bootstrap interval.
        base: the base's score, on a testbed.
        expert: the score of the task's own expert, on a testbed.
        normalised: the score by the expert's.
    """

    task: str
    kind: str
    split: str
    metric: str
    examples: int
    interval: Interval
    base: float | None = None
    expert: float | None = None
    normalised: float | None = None


@dataclass(frozen=True)
class ModelScores:
    """Result of `score_model`.

    Attributes:
        model: the folder.
        digest: hash of its content.
        rows: one per task.
        totals: figures over the tasks of a testbed: mean score, normalised score, gain, forgetting.
        scores: the scores of every example.
    """

    model: Path
    digest: str
    rows: tuple[TaskRow, ...]
    totals: dict[str, Interval]
    scores: dict[str, Scores] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": str(self.model),
            "digest": self.digest,
            "tasks": [asdict(row) for row in self.rows],
            "totals": {name: asdict(interval) for name, interval in self.totals.items()},
            "scores": {name: scores.as_dict() for name, scores in self.scores.items()},
        }

    def card_results(self) -> list[CardResult]:
        """What goes into the model card."""
        return [
            CardResult(
                row.kind,
                row.task,
                row.split,
                row.metric,
                row.interval.value,
                row.interval.low,
                row.interval.high,
                row.examples,
            )
            for row in self.rows
        ]


def score_model(
    model: str | Path,
    tasks: Sequence[str | Path],
    *,
    lm_eval_results: Sequence[str | Path] = (),
    split: str = "test",
    limit: int | None = None,
    cache: str | Path | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> ModelScores:
    """Score a model.

    Args:
        model: a Hugging Face folder.
        tasks: task files, folders with one, or a testbed; a testbed stands for all its tasks, and its base and experts
            are scored too (once: their scores are kept beside it).
        lm_eval_results: folders that lm-eval wrote for this model.
        split: which split.
        limit: most examples of a task.
        cache: where scores are kept.
        threads: threads of the computation.
        seed: seed of the bootstrap.
        progress: told the name of each task before it is scored.

    Raises:
        TaskError: nothing to score, or something that cannot be scored; nothing has been computed.
    """
    candidate = Candidate(model)
    testbeds = [read_testbed(path) for path in tasks if (Path(path) / MANIFEST).is_file()]
    single = [load_task(path, limit) for path in tasks if not (Path(path) / MANIFEST).is_file()]
    if len(testbeds) > 1:
        raise TaskError("two testbeds are given; score a model on one at a time.")
    if not tasks and not lm_eval_results:
        raise TaskError("there is no task to score; name one: --task FILE, or --results FOLDER of lm-eval.")
    own = [task.limited(limit) for bed in testbeds for task in (*bed.own_tasks, *bed.retained.values())]
    kept = ScoreCache(cache) if cache is not None else None
    if testbeds and kept is None:
        kept = ScoreCache(testbeds[0].scores)
    everything = [*own, *single]
    found: dict[str, Scores] = {}
    if everything:
        found |= evaluate(candidate, everything, split, cache=kept, threads=threads, progress=progress)
    kinds = {task.name: task.file.kind for task in everything}
    for folder in lm_eval_results:
        for name, scores in read_lm_eval(folder).items():
            if name in found:
                raise TaskError(f"two tasks are called {name!r}; give one of them another name.")
            found[name], kinds[name] = scores, "lm_eval"
    resamples = Resamples(seed)
    base: dict[str, Scores] = {}
    experts: dict[str, Scores] = {}
    totals: dict[str, Interval] = {}
    for bed in testbeds:
        base, experts = _references(bed, limit, split, kept, threads, progress)
        totals = _totals(bed, found, base, experts, resamples)
    rows = []
    for name, scores in found.items():
        values = resamples.values(scores)
        expert = experts[name].value if name in experts else None
        share = float(normalised({name: scores}, experts, resamples)[0]) if expert else None
        interval = resamples.interval(values)
        start = base[name].value if name in base else None
        size = len(scores.values)
        rows.append(TaskRow(name, kinds[name], split, scores.metric, size, interval, start, expert, share))
    return ModelScores(Path(model), candidate.digest, tuple(rows), totals, found)


def _references(
    bed: TestbedFolder,
    limit: int | None,
    split: str,
    cache: ScoreCache | None,
    threads: int,
    progress: Callable[[str], None] | None,
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Scores of the base on everything, and of each task's own expert on it."""

    def limited(tasks: Sequence[FileTask]) -> list[FileTask]:
        return [task.limited(limit) for task in tasks]

    def told(who: str) -> Callable[[str], None] | None:
        return None if progress is None else lambda name: progress(f"{name} with {who}")

    everything = limited([*bed.own_tasks, *bed.retained.values()])
    base = evaluate(bed.base, everything, split, cache=cache, threads=threads, progress=told("the base"))
    experts: dict[str, Scores] = {}
    for name, folder in bed.experts.items():
        if bed.tasks[name].name not in experts:  # the first of those that have this task
            own = limited([bed.tasks[name]])
            experts |= evaluate(folder, own, split, cache=cache, threads=threads, progress=told("its expert"))
    return base, experts


def _totals(
    bed: TestbedFolder,
    found: dict[str, Scores],
    base: dict[str, Scores],
    experts: dict[str, Scores],
    resamples: Resamples,
) -> dict[str, Interval]:
    names = [task.name for task in bed.own_tasks]
    own = {name: found[name] for name in names}
    totals = {"mean score": resamples.interval(raw(own, resamples))}
    retained = {task.name: found[task.name] for task in bed.retained.values()}
    for title, figure in (
        ("normalised by the experts", lambda: normalised(own, experts, resamples)),
        ("gain kept", lambda: gain(own, base, experts, resamples)),
        *([("forgotten of the base", lambda: forgetting(retained, base, resamples))] if retained else []),
    ):
        try:
            totals[title] = resamples.interval(figure())
        except EvaluationError:
            continue  # a reference that scores 0, or experts no better than the base: the figure does not exist
    return totals
