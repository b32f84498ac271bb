"""Run one program as a fresh process and measure it: wall time, processor time, peak resident memory.

Linux hands the peak of the process that forks on to its child, so the harness itself must stay small: it imports
neither torch nor numpy, and everything large happens in children.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Failed", "evict", "measure"]

_EVERY = 0.05


class Failed(RuntimeError):
    """A measured program returned an error."""


def measure(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> tuple[dict[str, Any], str]:
    """Return seconds and bytes of a command, and what it printed.

    `rss` is the kernel's own peak and counts mapped file pages; `private` is the largest anonymous part of it seen in
    samples twenty times a second.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(c) for c in command], env={**os.environ, **(environment or {})}, stdout=out, stderr=err
        )
        sampler = _Sampler(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        sampler.stop()
        out.seek(0)
        err.seek(0)
        if status:
            raise Failed(f"{' '.join(map(str, command))} returned {process.returncode}:\n{err.read()[-2000:]}")
        found = {
            "wall": wall,
            "user": usage.ru_utime,
            "system": usage.ru_stime,
            "cpu": usage.ru_utime + usage.ru_stime,
            "rss": usage.ru_maxrss * 1024,
            "private": sampler.peak,
        }
        return found, out.read()


class _Sampler(threading.Thread):
    """Watches the anonymous memory of a process."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self.peak = 0
        self.start()

    def run(self) -> None:
        while not self._over.wait(_EVERY):
            try:
                text = self._status.read_text()
            except OSError:
                return
            for line in text.splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)

    def stop(self) -> None:
        self._over.set()
        self.join()


def evict(files: Iterable[Path]) -> None:
    """Drop files from the page cache, so that the next reader goes to the disk; no effect on memory-backed files."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
