"""Names beside an output, and whether it may be made there.

Beside an output NAME stand, while it is made: `.NAME.plait-partial`, the folder that will be it; `.NAME.plait-work`,
the journal and the survey totals; `.NAME.plait-lock`, held by the process that writes. All are gone in the end.
While an output is replaced, the old one is `.NAME.plait-old-…`, and `.NAME.plait-gone-…` once the new one stands.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from plait.engine._plan import Plan
from plait.errors import DiskSpaceError, OutputError

__all__ = ["beside", "check_target", "existing_parent", "exists_already", "partial_of", "work_of"]

_LONGEST = 200  # bytes of a name, so that the names beside it fit as well


def existing_parent(path: Path) -> Path:
    """The closest place above that exists."""
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    return Path.cwd()


def beside(out: Path, what: str) -> Path:
    """A hidden name beside an output."""
    target = out.absolute()
    return target.with_name(f".{target.name}.plait-{what}")


def partial_of(out: Path) -> Path:
    """Where an output grows: a hidden folder beside it."""
    return beside(out, "partial")


def work_of(out: Path) -> Path:
    """Where the journal of an output lies."""
    return beside(out, "work")


def check_target(plan: Plan, out: Path, overwrite: bool) -> None:
    """Refuse an output that would destroy something or cannot fit, before anything is written.

    Raises:
        OutputError: if it exists (without `overwrite`), or is or contains or lies in an input, or cannot be made.
        DiskSpaceError: if the file system has too little room.
    """
    if len(os.fsencode(out.absolute().name)) > _LONGEST:
        raise OutputError(f"the output's name {out.name[:40]}… is too long; use at most {_LONGEST} bytes.")
    target = out.resolve()
    for source in plan.folders:
        given = source.resolve()
        if target == given or given in target.parents or target in given.parents:
            raise OutputError(
                f"the output {out} and the input {source} are the same place or lie in one another; choose another "
                "output."
            )
    if out.exists() or out.is_symlink():
        if not overwrite:
            if _may_have_landed(out):
                return
            raise exists_already(out)
        if not out.is_dir() or out.is_symlink():
            raise OutputError(f"the output {out} is not a folder; it will not be overwritten.")
        with suppress(FileNotFoundError):  # another process is replacing it this moment; the lock will tell
            known = any(out.glob("*.safetensors")) or (out / "plait.json").exists() or not any(out.iterdir())
            if not known:
                raise OutputError(f"the output {out} is a folder without a model; it will not be overwritten.")
    parent = existing_parent(out)
    if not parent.is_dir():
        raise OutputError(f"{parent} is a file; the output {out} cannot lie in it.")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"the folder {parent} cannot be written to.")
    held = 0
    with suppress(FileNotFoundError):  # another process is finishing it this moment
        held = sum(p.stat().st_blocks * 512 for p in partial_of(out).rglob("*.safetensors"))
    free = shutil.disk_usage(parent).free
    needed = plan.layout.nbytes + (1 << 20)
    if needed > free + held:
        raise DiskSpaceError(
            f"the output needs {_size(needed)} but {parent} has {_size(free)} free: make room, or choose another "
            "disk or a smaller dtype."
        )


def _may_have_landed(out: Path) -> bool:
    """Whether a run may have been killed after it had put its output in place, before it had tidied up."""
    if partial_of(out).exists() or not out.is_dir() or out.is_symlink():
        return False
    return work_of(out).is_dir() or beside(out, "lock").exists()


def exists_already(out: Path) -> OutputError:
    """The refusal to replace an output that stands there."""
    return OutputError(f"the output {out} exists already; choose another, or pass --overwrite (overwrite=True).")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.2f} MB"
