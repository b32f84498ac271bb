"""What a growing output asks of the file system: a lock, room, durable folders, and removal that leaves no half."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plait.engine._journal import FULL
from plait.engine._places import beside, partial_of
from plait.errors import DiskSpaceError, OutputError

__all__ = ["explained", "put_back", "recover", "remove_old", "remove_work", "reserve", "sync_folder", "take_lock"]


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """Turn what the system refuses into one of our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskSpaceError(
                f"the disk filled up while writing {out}: {error.strerror}. What is finished is kept; make room and "
                "run the same command again to continue."
            ) from None
        place = f" ({error.filename})" if error.filename and str(error.filename) != str(out) else ""
        raise OutputError(f"the output {out} cannot be written{place}: {error.strerror or error}.") from None


def take_lock(path: Path, out: Path) -> int:
    """Take the lock, on the file that stands there now: a file that was removed meanwhile locks nothing."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise OutputError(f"another process is writing {out}; wait for it, or choose another output.") from None
        try:
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)


def reserve(handle: int, size: int) -> None:
    """Claim a file's room, so that a disk too small is found at once; a file system that cannot is let be.

    Not `os.posix_fallocate`: where a file system cannot, the C library would write to every block instead.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None) if sys.maxsize > 1 << 32 else None
    if call is None:
        return
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(handle, 0, 0, size) != 0 and ctypes.get_errno() in FULL:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def recover(out: Path) -> None:
    """Put back an old output that a kill left between the two renames of an overwrite; remove what is left over."""
    for path in put_back(out):
        if not partial_of(out).exists():  # else it is not this output's successor that stands in its place
            remove_old(path, out)
    for path in out.parent.glob(f".{_literal(out.name)}.plait-gone-*"):
        shutil.rmtree(path, ignore_errors=True)


def put_back(out: Path) -> list[Path]:
    """Put back an old output that nothing has taken the place of; return the others that were moved away."""
    left = sorted(out.parent.glob(f".{_literal(out.name)}.plait-old-*"))
    if left and not out.exists():
        left.pop().rename(out)
    return left


def remove_old(old: Path, out: Path) -> None:
    """Remove an output that was replaced; half of it is never put back."""
    gone = beside(out, "gone-" + old.name.rpartition("-old-")[2])
    with suppress(OSError):
        old.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def remove_work(work: Path) -> None:
    """Remove the journal's folder, the journal last: while it stands, the run that wrote it is known to be complete."""
    with suppress(OSError):
        for path in work.iterdir():
            if path.name != "journal":
                path.unlink()
    shutil.rmtree(work, ignore_errors=True)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def sync_folder(path: Path) -> None:
    """Have the disk store which files a folder has."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise  # these: some file systems cannot sync a folder
    finally:
        os.close(handle)
