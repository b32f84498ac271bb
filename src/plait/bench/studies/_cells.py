"""Cells: one merge and its scores each, a file as soon as it is known; what a run that was killed has done is kept."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from plait.bench.studies._grids import steps_of
from plait.bench.studies._pools import Pool
from plait.errors import DiskSpaceError, EvaluationError, InterruptedRunError
from plait.evaluation import Candidate, FileTask, Scores, evaluate

__all__ = ["Cell", "Kitchen"]

_CODE = 1  # raise when a change of code changes what cells hold: older ones are then not read
#: what ends a run instead of being one method's failure
_FATAL = (DiskSpaceError, InterruptedRunError, MemoryError)


@dataclass(frozen=True)
class Cell:
    """What is known of one merge on one split.

    Attributes:
        key: name of its file.
        recipe: what was merged.
        model: hash of the merged model.
        scores: by task.
        error: what was raised instead.
    """

    key: str
    recipe: Mapping[str, Any]
    model: str = ""
    scores: Mapping[str, Scores] | None = None
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        scores = {name: one.as_dict() for name, one in (self.scores or {}).items()}
        return {"recipe": self.recipe, "model": self.model, "scores": scores, "error": self.error}


@cache
def _code_of(method: str) -> str:
    """Hash of the sources that decide what a method computes: its own, its helpers', the shared mathematics'."""
    import plait.tensors
    from plait import methods

    sources = {inspect.getsourcefile(cls) for cls in steps_of(json.loads(method))}
    folders = [Path(str(package.__file__)).parent for package in (plait.tensors, methods)]
    helpers = [
        path for i, folder in enumerate(folders) for path in folder.glob("*.py") if i == 0 or path.name[0] == "_"
    ]
    state = hashlib.sha256()
    for path in sorted({*(Path(source) for source in sources if source), *helpers}):
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


class Kitchen:
    """Makes cells, or finds them.

    Args:
        folder: where a study's results lie.
        merge: merges a recipe into a folder, as `plait.merge` does.
        threads: threads of the evaluation.
    """

    def __init__(self, folder: Path, merge: Callable[[Mapping[str, Any], Path], object], threads: int) -> None:
        self.folder, self._merge, self.threads = folder, merge, threads
        self.made = 0
        self._digests: dict[int, str] = {}
        _clear(folder / "work")

    def cell(
        self,
        pool: Pool,
        recipe: Mapping[str, Any],
        tasks: Sequence[tuple[FileTask, str]],
        expected: str = "",
    ) -> Cell:
        """Merge and score, unless that was done before; what a merge raises is in the cell.

        Args:
            pool: where the models come from.
            recipe: what to merge.
            tasks: tasks, each with the split it is scored on.
            expected: hash that the merged model must have.
        """
        key = self._key(pool, recipe, tasks)  # the order of the experts counts
        path = self.folder / "cells" / f"{key}.json"
        known = self._read(path, key)
        if known is None or known.error:
            known = self._make(key, recipe, tasks)
            _write(path, known.as_dict())
            self.made += 1
        if expected and known.model and known.model != expected:
            raise EvaluationError(
                f"the recipe of cell {key} gave another model than before; a merge must give the same bytes every time."
            )
        return known

    def _key(self, pool: Pool, recipe: Mapping[str, Any], tasks: Sequence[tuple[FileTask, str]]) -> str:
        import torch

        if id(pool) not in self._digests:
            self._digests[id(pool)] = pool.digest()
        places = {str(path): name for name, path in {**pool.experts, "base": pool.base}.items()}
        facts = {
            "code": _CODE,
            "method": _code_of(json.dumps(recipe["method"])),
            "pool": self._digests[id(pool)],
            "recipe": _relative(recipe, places),
            "tasks": [[task.name, task.identity(split), split] for task, split in tasks],
            "threads": self.threads,
            "torch": torch.__version__,
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    def _read(self, path: Path, key: str) -> Cell | None:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            scores = {name: Scores.from_dict(one) for name, one in data["scores"].items()}
            return Cell(key, data["recipe"], data["model"], scores, data["error"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _make(self, key: str, recipe: Mapping[str, Any], tasks: Sequence[tuple[FileTask, str]]) -> Cell:
        work = self.folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        out = work / f"{key}-{os.getpid()}"
        try:
            with _Watch() as merging:
                self._merge(recipe, out)
            candidate = Candidate(out)
            digest = candidate.digest  # while it is there
            scores: dict[str, Scores] = {}
            with _Watch() as scoring:
                for split in dict.fromkeys(split for _, split in tasks):
                    chosen = [task for task, own in tasks if own == split]
                    scores |= evaluate(candidate, chosen, split, threads=self.threads)
        except _FATAL:
            raise
        except Exception as error:  # one method's failure is its row, not the end of the study
            return Cell(key, recipe, error=f"{type(error).__name__}: {error}")
        finally:
            shutil.rmtree(out, ignore_errors=True)
        examples = sum(len(one.values) for one in scores.values())
        cost = {"merge": merging.cost(), "evaluate": scoring.cost(), "examples": examples}
        _write(self.folder / "costs" / f"{key}.json", cost)
        return Cell(key, recipe, digest, {task.name: scores[task.name] for task, _ in tasks})

    def cost(self, key: str) -> dict[str, Any] | None:
        """Seconds and bytes that a cell took when it was made."""
        try:
            return json.loads((self.folder / "costs" / f"{key}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None


def _relative(value: Any, places: Mapping[str, str]) -> Any:
    """A recipe with the models' names in the place of their paths: a pool that moves keeps its cells."""
    if isinstance(value, Mapping):
        return {key: _relative(item, places) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, places) for item in value]
    return places.get(value, value) if isinstance(value, str) else value


def _clear(work: Path) -> None:
    """Remove what processes left that were killed while they merged."""
    for leftover in work.iterdir() if work.is_dir() else ():
        found = re.match(r"\.?[0-9a-f]{24}-(\d+)", leftover.name)
        if found and not Path(f"/proc/{found.group(1)}").exists() and Path("/proc/self").exists():
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


class _Watch:
    """Seconds of the wall clock and of the CPU, and by how much the resident memory rose above where it began."""

    def __enter__(self) -> _Watch:
        self._peaked = _reset_peak()
        self._resident = _status("VmRSS:")
        self._wall, self._cpu = time.perf_counter(), _cpu()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, _cpu() - self._cpu
        peak = _status("VmHWM:") if self._peaked else 0
        self.bytes = max(0, peak - self._resident) if peak else None

    def cost(self) -> dict[str, float | int | None]:
        """Plain data."""
        return {"seconds": round(self.wall, 3), "cpu_seconds": round(self.cpu, 3), "bytes": self.bytes}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _reset_peak() -> bool:
    """Let the kernel begin a new peak of resident memory; Linux only."""
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)
