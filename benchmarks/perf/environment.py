"""An environment of mergekit's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["make_environment"]

#: the same PyTorch as plait's; the rest is what the resolver takes for mergekit 0.1.5
PACKAGES = ["mergekit==0.1.5", "torch==2.13.0"]


def make_environment(path: Path | None) -> None:
    """Create it and install mergekit from PyPI."""
    if path is None:
        raise SystemExit("say where: performance.py mergekit-env ENV")
    if not (path / "bin" / "mergekit-yaml").is_file():
        subprocess.run([sys.executable, "-m", "venv", path], check=True)
        subprocess.run([path / "bin" / "python", "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    subprocess.run([path / "bin" / "python", "-m", "pip", "list"], check=True)
