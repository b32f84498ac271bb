"""A testbed in the making: a folder of finished pieces that takes its name when all are there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.bench._cache import new_folder

__all__ = ["Draft", "building"]

_COSTS = ".costs"


@dataclass(frozen=True)
class Draft:
    """Where a testbed grows. A process that is killed loses the piece in work; the next one goes on from there.

    Attributes:
        folder: the folder that becomes the testbed.
        report: takes one line of progress at a time.
        manifest: what testbed.json will say.
    """

    folder: Path
    report: Callable[[str], None]
    manifest: dict[str, Any] = field(default_factory=dict)

    def piece(self, place: str, make: Callable[[Path], None]) -> Path:
        """Let `make` fill a new folder, unless it is there already, and note the CPU seconds that took."""
        path = self.folder / place
        if not path.is_dir():
            start = time.process_time()
            with new_folder(path) as fresh:
                make(fresh)
                self.note_cost(place, time.process_time() - start)
        return path

    def note_cost(self, place: str, seconds: float) -> None:
        """Keep the CPU seconds of a piece."""
        self.write(f"{_COSTS}/{place.replace('/', '-')}.json", seconds)

    def write(self, place: str, value: Any) -> None:
        """Write a JSON file at once."""
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)

    def once(self, place: str, make: Callable[[], Any]) -> Any:
        """Read a JSON file, or write to it what `make` returns, with the CPU seconds it took."""
        path = self.folder / place
        if not path.is_file():
            start = time.process_time()
            value = make()
            self.note_cost(place, time.process_time() - start)
            self.write(place, value)
        return json.loads(path.read_text(encoding="utf-8"))

    def task(self, name: str, splits: Mapping[str, Sequence[Mapping[str, Any]]], **content: Any) -> None:
        """Write a task whose splits are rows of text."""

        def make(fresh: Path) -> None:
            for split, rows in splits.items():
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                (fresh / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            write_task_file(fresh, name, {split: f"{split}.jsonl" for split in splits}, **content)

        self.piece(f"tasks/{name}", make)

    def finish(self, readme: str) -> None:
        """Write README.md and testbed.json; the costs are the sum over all pieces."""
        costs = self.folder / _COSTS
        seconds = [float(path.read_text()) for path in sorted(costs.glob("*.json"))] if costs.is_dir() else []
        self.manifest["cost"] = {"cpu_seconds": round(sum(seconds), 1)}
        (self.folder / "README.md").write_text(readme, encoding="utf-8")
        self.write("testbed.json", self.manifest)
        shutil.rmtree(costs, ignore_errors=True)
        for leftover in list(self.folder.rglob(".*")):  # of processes that were killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_task_file(folder: Path, name: str, splits: Mapping[str, str], **content: Any) -> None:
    """Write task.json."""
    value = {"format": 1, "name": name, "splits": dict(splits), **content}
    (folder / "task.json").write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@contextmanager
def building(path: Path, report: Callable[[str], None]) -> Generator[Draft | None, None, None]:
    """Give the draft of `path`, and rename it to `path` at the end; None if it is there already.

    Of several processes that build the same testbed one works and the others wait for it.
    """
    if path.is_dir():
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.draft")
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process builds this testbed; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.is_dir():
            yield None
            return
        folder.mkdir(exist_ok=True)
        yield Draft(folder, report)
        folder.rename(path)
        lock.unlink(missing_ok=True)
