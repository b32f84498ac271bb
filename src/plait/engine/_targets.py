"""Where an output goes: a folder of this machine, or a URL."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from plait.checkpoints import is_url, local_path
from plait.checkpoints._store import Store
from plait.engine._options import Options
from plait.engine._output import GrowingOutput
from plait.engine._places import check_target, existing_parent
from plait.engine._plan import Plan
from plait.engine._remote_output import RemoteOutput, list_target
from plait.errors import DiskSpaceError, OutputError

__all__ = ["check_output", "open_output", "room_at"]


def check_output(plan: Plan, out: Path | str, options: Options) -> None:
    """Refuse an output that would destroy something or cannot fit, before anything is written.

    Raises:
        OutputError, DiskSpaceError: as `check_target`; for a URL the room needed is that of the spool.
    """
    if not is_url(out):
        check_target(plan, local_path(str(out)), options.overwrite)
        return
    url = str(out).rstrip("/")
    if url.startswith("hf://"):
        raise OutputError(f"{url}: write to a folder and publish it with `hf upload`; the Hub is no place to grow in.")
    for given in plan.urls:
        if f"{url}/".startswith(f"{given.rstrip('/')}/") or f"{given}/".startswith(f"{url}/"):
            raise OutputError(
                f"the output {url} and the input {given} are the same place or lie in one another; choose another "
                "output."
            )
    list_target(Store(url, OutputError), plan.fingerprint(options.device), options.overwrite)
    largest = sorted((shard.size for shard in plan.layout.shards), reverse=True)[:2]
    home, free = room_at(out, options)
    if sum(largest) > free:
        raise DiskSpaceError(
            f"{len(largest)} shards of the output need {sum(largest) / 1e9:.2f} GB in the spool {home}, which has "
            f"{free / 1e9:.2f} GB free: choose another with --spool, or a smaller shard_size."
        )


def room_at(out: Path | str | None, options: Options) -> tuple[Path, int]:
    """Where bytes are written on this machine, and how many fit."""
    if out is None:
        home = Path.cwd()
    elif is_url(out):
        spool = options.spool or Path(tempfile.gettempdir())
        home = spool if spool.exists() else existing_parent(spool)
    else:
        home = existing_parent(local_path(str(out)))
    return home, shutil.disk_usage(home).free


def open_output(plan: Plan, out: Path | str, options: Options) -> GrowingOutput | RemoteOutput:
    """Begin an output, or continue the one that a killed run of the same plan has left."""
    fingerprint = plan.fingerprint(options.device)
    if is_url(out):
        return RemoteOutput(str(out), plan.layout, fingerprint, options.overwrite, options.spool)
    return GrowingOutput(local_path(str(out)), plan.layout, fingerprint, options.overwrite)
