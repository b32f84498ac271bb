"""The lm-evaluation-harness: run it in this or another environment, read the results and samples that it writes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from plait.errors import EvaluationError, TaskError
from plait.evaluation._candidate import Candidate
from plait.evaluation._file_task import FileTask, Kind
from plait.evaluation._scores import Scores

__all__ = ["LmEval", "read_lm_eval"]

_LOWER = ("perplexity", "bits_per_byte", "brier", "ter", "loss")
_SHOWN = 2000


def read_lm_eval(folder: str | Path, metric: str | None = None) -> dict[str, Scores]:
    """Read what `lm_eval --log_samples --output_path FOLDER` wrote; of several runs the latest.

    Args:
        folder: searched with its subfolders for results_*.json and samples_*.jsonl.
        metric: name of a metric, with its filter if there are several: `acc` or `exact_match,strict-match`; by default
            the first one of each task.

    Returns:
        Scores by task, in the order of the results; a score per example where the samples are there.

    Raises:
        EvaluationError: no results, no samples, or samples without the metric.
    """
    home = Path(folder)
    found = sorted(home.rglob("results*.json"), key=lambda path: path.name)
    if not found:
        raise EvaluationError(f"{home} holds no results_*.json of lm-eval.")
    latest = found[-1]
    try:
        results = json.loads(latest.read_text(encoding="utf-8"))
        names = list(results["results"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{latest} is no results file of lm-eval: {error!r}.") from None
    stamp = latest.stem.removeprefix("results")
    scores: dict[str, Scores] = {}
    for name in names:
        path = latest.with_name(f"samples_{name}{stamp}.jsonl")
        if path.is_file():
            scores[name] = _read_samples(path, name, metric, results.get("higher_is_better", {}).get(name) or {})
    if not scores:
        raise EvaluationError(f"{latest.parent} holds no samples_*.jsonl of that run; run lm-eval with --log_samples.")
    return scores


def _read_samples(path: Path, task: str, metric: str | None, directions: dict[str, Any]) -> Scores:
    wanted, _, filter_name = (metric or "").partition(",")
    values: dict[int, float] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            names = row.get("metrics") or [key for key in directions if key in row]
            filter_name = filter_name or row.get("filter", "none")
            wanted = wanted or names[0]
            if row.get("filter", "none") == filter_name:
                values[int(row["doc_id"])] = float(row[wanted])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise EvaluationError(
                f"{path}, line {number}: no number for the metric {wanted or 'of the task'!r} ({error!r}). Name one "
                "that has "
                "a value per sample."
            ) from None
    if not values:
        raise EvaluationError(f"{path} has no sample with the filter {filter_name!r}.")
    better = directions.get(wanted)
    better = not any(word in wanted for word in _LOWER) if better is None else bool(better)
    return Scores.of(task, wanted, [values[i] for i in sorted(values)], higher_is_better=better)


class LmEval(Kind):
    """A task file with the names of tasks of lm-eval; several tasks, or the parts of a group, count as one."""

    def files(self, task: FileTask, split: str) -> list[Path]:
        """Files of the task's folder that the arguments name, such as an own task's YAML."""
        return [path for word in task.file.arguments if (path := task.path.parent / word).is_file()]

    def check(self, task: FileTask, model: Candidate, split: str) -> None:
        """Look for names and for the harness."""
        if not task.file.tasks:
            raise TaskError(f"task {task.name!r}: 'tasks' must name tasks of lm-eval.")
        if split != "test":
            raise TaskError(f"task {task.name!r}: lm-eval chooses the split itself; it is scored as 'test' only.")
        command = [
            self._python(task),
            "-c",
            "import importlib.util as u, sys; sys.exit(u.find_spec('lm_eval') is None)",
        ]
        try:
            missing = subprocess.run(command, capture_output=True).returncode
        except OSError as error:
            raise TaskError(f"task {task.name!r}: {command[0]} cannot be run: {error.strerror}.") from None
        if missing:
            raise TaskError(
                f"task {task.name!r}: {command[0]} has no lm-eval; pip install lm-eval there, or name another 'python'."
            )

    def _python(self, task: FileTask) -> str:
        return str(Path(task.file.python).expanduser()) if task.file.python else sys.executable

    def score(self, task: FileTask, model: Candidate, split: str) -> Scores:
        """Run the harness in a process of its own and read its samples."""
        with tempfile.TemporaryDirectory(prefix="plait-lm-eval-") as scratch:
            command = [self._python(task), "-m", "lm_eval", "--model", "hf"]
            command += ["--model_args", f"pretrained={model.folder.resolve()},dtype=float32"]
            command += ["--tasks", ",".join(task.file.tasks), "--output_path", scratch, "--log_samples"]
            command += ["--limit", str(task.limit)] if task.limit is not None else []
            done = subprocess.run(
                [*command, *task.file.arguments], cwd=task.path.parent, capture_output=True, text=True
            )
            if done.returncode:
                raise EvaluationError(
                    f"lm-eval failed with exit code {done.returncode} on task "
                    f"{task.name!r}:\n{done.stderr.strip()[-_SHOWN:]}"
                )
            found = list(read_lm_eval(scratch, task.file.metric).values())
        metric, better = found[0].metric, found[0].higher_is_better
        if any(scores.metric != metric for scores in found):
            named = ", ".join(sorted({scores.metric for scores in found}))
            raise EvaluationError(f"task {task.name!r}: its parts have different metrics ({named}); name one.")
        if task.file.higher_is_better is not None:
            better = task.file.higher_is_better
        values = [value for scores in found for value in scores.values.tolist()]
        return Scores.of(task.name, metric, values, higher_is_better=better)
