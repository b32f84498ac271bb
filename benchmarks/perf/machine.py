"""What the figures were measured on, without names."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["available", "describe", "idle", "versions"]

_WANTED = {
    "Model name": "processor",
    "Architecture": "architecture",
    "CPU(s)": "cores",
    "Thread(s) per core": "threads_per_core",
    "L2 cache": "l2",
    "L3 cache": "l3",
    "Hypervisor vendor": "virtualised_by",
}
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


def describe() -> dict[str, Any]:
    """Processor, memory and kernel."""
    found: dict[str, Any] = {"system": platform.system(), "kernel": platform.release().split("-")[0]}
    lscpu = json.loads(subprocess.run(["lscpu", "-J"], capture_output=True, text=True, check=True).stdout)
    rows = {row["field"].rstrip(":"): row["data"] for row in _flat(lscpu["lscpu"])}
    found |= {name: rows[key] for key, name in _WANTED.items() if key in rows}
    found["vector_instructions"] = [f for f in _FLAGS if f in rows.get("Flags", "").split()]
    memory = Path("/proc/meminfo").read_text().splitlines()[0].split()[1]
    found["memory_gib"] = round(int(memory) / 2**20, 1)
    return found


def _flat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for row in rows for r in (row, *_flat(row.get("children", [])))]


def versions(mergekit: Path | None) -> dict[str, str]:
    """Versions of both sides."""
    found = {"python": platform.python_version()}
    found |= {name: version(name) for name in ("torch", "numpy", "safetensors")}
    found["plait"] = subprocess.run(
        [sys.executable, "-c", "import plait; print(plait.__version__)"], capture_output=True, text=True
    ).stdout.strip()
    if mergekit is not None:
        code = (
            "from importlib.metadata import version as v; "
            "print(*(p + '=' + v(p) for p in ('mergekit', 'torch', 'transformers', 'safetensors', 'pydantic')))"
        )
        program = [mergekit / "bin" / "python", "-c", code]
        listed = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        found["mergekit environment"] = ", ".join(listed.split()).replace("=", " ")
    return found


def available() -> int:
    """Bytes of memory that are free."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


def idle() -> float:
    """Load of the last minute: how busy the machine was with other things when a case began."""
    return float(Path("/proc/loadavg").read_text().split()[0])
