"""Seconds of a whole command by phase, for benchmarks: written where the variable PLAIT_TIMINGS says."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from plait.engine import Result

__all__ = ["since_start", "write_timings"]

_IMPORTED = time.monotonic()


def since_start() -> tuple[float, float]:
    """Wall and CPU seconds since the process began (where the system does not say: since this module was loaded)."""
    wall = time.monotonic() - _IMPORTED
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        wall = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    return wall, time.process_time()


def write_timings(result: Result, began: tuple[float, float], planned: tuple[float, float]) -> None:
    """Write one JSON object: phases in wall seconds, the same in CPU seconds, and how steps were computed."""
    path = os.environ.get("PLAIT_TIMINGS")
    if not path:
        return
    phases = {"start": began[0], "plan": planned[0] - began[0], **result.timings.wall}
    cpu = {"start": began[1], "plan": planned[1] - began[1], **result.timings.cpu}
    Path(path).write_text(json.dumps({"phases": phases, "cpu": cpu, "path": dict(result.path)}, indent=1) + "\n")
