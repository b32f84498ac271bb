"""What several testbeds use: seeds, progress, heads, versions."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["copy_missing", "progress", "save_head", "seed_of", "version_of"]


def seed_of(seed: int, what: str) -> int:
    """A seed of its own for everything that is trained."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}".encode()).digest()[:6], "big")


def progress(report: Callable[[str], None], what: str, steps: int) -> Callable[[int, float], None]:
    """Report every so many steps."""

    def say(step: int, loss: float) -> None:
        if step == steps or step % 50 == 0:
            report(f"training {what}: step {step}/{steps}, loss {loss:.2f}")

    return say


def copy_missing(base: Path, folder: Path) -> None:
    """Copy what an expert's folder lacks beside the base's: the tokenizer."""
    for file in base.iterdir():
        if file.is_file() and not (folder / file.name).exists():
            shutil.copy2(file, folder)


def save_head(head: Any, path: Path) -> None:
    """Write weight and bias."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}, path)


def version_of(package: str) -> str:
    """Its version, or `none`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
