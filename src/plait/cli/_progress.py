"""Progress with a rate and an estimate on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

__all__ = ["Display"]

_LINE_EVERY = 10.0


class Display:
    """Shows phases and bytes; used as a context."""

    def __init__(self, quiet: bool = False) -> None:
        self._lock = threading.Lock()
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._name = ""
        self._total = self._done = 0
        self._start = self._spoken = 0.0

    def __enter__(self) -> Display:
        if sys.stderr.isatty() and not self._quiet:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._finish()

    def phase(self, name: str, total: int) -> None:
        """Begin a phase of `total` bytes."""
        self._finish()
        self._name, self._total, self._done = name, total, 0
        self._start = self._spoken = time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total)

    def advance(self, count: int) -> None:
        """Count bytes; from any thread."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.advance(self._task, count)
            elif time.monotonic() - self._spoken >= _LINE_EVERY:
                self._spoken = time.monotonic()
                rate = self._done / max(self._spoken - self._start, 1e-9)
                left = (self._total - self._done) / max(rate, 1.0)
                share = self._done / max(self._total, 1)
                self._say(f"{self._name}: {share:.0%}, {rate / 1e6:,.0f} MB/s, about {left:,.0f} s left")

    def note(self, text: str) -> None:
        """Print a line."""
        self._say(text)

    def _finish(self) -> None:
        if self._name and self._bar is None:
            spent = time.monotonic() - self._start
            rate = self._total / max(spent, 1e-9) / 1e6
            self._say(f"{self._name}: {self._total / 1e6:,.1f} MB in {spent:.1f} s ({rate:,.0f} MB/s)")
            self._name = ""

    def _say(self, text: str) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
