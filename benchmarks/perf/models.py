"""Checkpoints for the suites, written by `make_checkpoints.py` in a process of its own, and removed when done."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["checkpoints"]

MAKER = Path(__file__).parent.parent / "make_checkpoints.py"


@contextmanager
def checkpoints(home: Path, size: str, experts: int = 3, keep: bool = False) -> Iterator[Path]:
    """Make the models of a size and yield their folder.

    A size is `0.5b`; `8b/1`, with another number of layers; `8b~2`, whole files with holes after the second layer; or
    `4000t`, that many tiny tensors. A folder that was there before is used and left alone.
    """
    folder = home / size.replace("/", "-layers-").replace("~", "-sparse-")
    there = folder.is_dir()
    options = ["--experts", str(experts)]
    if size.endswith("t"):
        options += ["--tensors", size[:-1]]
    else:
        name, _, filled = size.partition("~")
        name, _, layers = name.partition("/")
        options += ["--size", name]
        options += ["--layers", layers] if layers else []
        options += ["--sparse", filled] if filled else []
    try:
        subprocess.run([sys.executable, MAKER, folder, *options], check=True)
        yield folder
    finally:
        if not keep and not there:
            shutil.rmtree(folder, ignore_errors=True)
