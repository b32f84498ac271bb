"""The output folder while it grows: a hidden sibling, locked, sized in advance, renamed when complete.

Beside an output NAME stand, while it is made: `.NAME.plait-partial`, the folder that will be it; `.NAME.plait-work`,
the journal and the survey totals; `.NAME.plait-lock`, held by the process that writes. All are gone in the end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from plait.checkpoints import Layout, Shard
from plait.engine._facts import FactStore
from plait.engine._hashes import bytes_of
from plait.engine._journal import Journal
from plait.engine._plan import Job, Plan
from plait.engine._shard_file import FolderSink
from plait.errors import DiskSpaceError, OutputError

__all__ = ["GrowingOutput", "check_target", "existing_parent", "partial_of", "work_of"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST = 200  # bytes of a name, so that the names beside it fit as well


def existing_parent(path: Path) -> Path:
    """The closest place above that exists."""
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    return Path.cwd()


def _beside(out: Path, what: str) -> Path:
    target = out.absolute()
    return target.with_name(f".{target.name}.plait-{what}")


def partial_of(out: Path) -> Path:
    """Where an output grows: a hidden folder beside it."""
    return _beside(out, "partial")


def work_of(out: Path) -> Path:
    """Where the journal of an output lies."""
    return _beside(out, "work")


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
            raise _exists(out)
        if not out.is_dir() or out.is_symlink():
            raise OutputError(f"the output {out} is not a folder; it will not be overwritten.")
        known = any(out.glob("*.safetensors")) or (out / "plait.json").exists() or not any(out.iterdir())
        if not known:
            raise OutputError(f"the output {out} is a folder without a model; it will not be overwritten.")
    parent = existing_parent(out)
    if not parent.is_dir():
        raise OutputError(f"{parent} is a file; the output {out} cannot lie in it.")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"the folder {parent} cannot be written to.")
    partial = partial_of(out)
    held = sum(p.stat().st_blocks * 512 for p in partial.glob("*.safetensors")) if partial.is_dir() else 0
    free = shutil.disk_usage(parent).free
    needed = plan.layout.nbytes + (1 << 20)
    if needed > free + held:
        raise DiskSpaceError(
            f"the output needs {_size(needed)} but {parent} has {_size(free)} free: make room, or choose another "
            "disk or a smaller dtype."
        )


def _exists(out: Path) -> OutputError:
    return OutputError(f"the output {out} exists already; choose another, or pass --overwrite (overwrite=True).")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.2f} MB"


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Turn what the system refuses into one of our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskSpaceError(
                f"the disk filled up while writing {out}: {error.strerror}. What is finished is kept; make room and "
                "run the same command again to continue."
            ) from None
        raise OutputError(f"the output {out} cannot be written: {error.strerror or error}.") from None


def _lock(path: Path, out: Path) -> int:
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


class GrowingOutput:
    """Writes tensors at their offsets from any thread, and puts the finished folder in its place at once."""

    def __init__(self, out: Path, layout: Layout, fingerprint: str, overwrite: bool = False) -> None:
        self.out = out.absolute()
        self.layout = layout
        self.overwrite = overwrite
        self.partial, self.work = partial_of(out), work_of(out)
        self._lock_path = _beside(out, "lock")
        self._files: dict[str, int] = {}
        with _explained(out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.partial, self.work):
                if path.is_symlink() or (path.exists() and not path.is_dir()):
                    raise OutputError(f"{path} is in the way: it is not a folder of plait's. Remove it.")
            self._lock_handle = _lock(self._lock_path, out)
            try:
                self._begin(fingerprint)
            except BaseException:
                self._release()
                raise

    def _begin(self, fingerprint: str) -> None:
        _recover(self.out)
        if not self.overwrite and (self.out.exists() or self.out.is_symlink()):  # made since the target was checked
            raise _exists(self.out)
        self.partial.mkdir(exist_ok=True)
        self.work.mkdir(exist_ok=True)
        self.journal = Journal(self.work / "journal", fingerprint)
        if not self.journal.resumed:  # of another plan: nothing of it may be taken for ours
            for folder in (self.work, self.partial):
                shutil.rmtree(folder)
                folder.mkdir()
        for left in self.work.glob("*.part"):  # shards that workers elsewhere did not finish
            left.unlink()
        self.journal.start()
        for shard in self.layout.shards:
            path = self.partial / shard.name
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            self._files[shard.name] = handle
            os.ftruncate(handle, shard.size)
            self._write(handle, shard.header, 0)

    @property
    def facts(self) -> FactStore:
        """Where totals of finished survey rounds are kept."""
        return FactStore(self.work)

    @property
    def sink(self) -> FolderSink:
        """How a worker elsewhere delivers a whole shard."""
        return FolderSink(self.partial, self.work)

    def batches(self, todo: Sequence[Job]) -> Iterator[Sequence[Job]]:
        """Jobs that may be worked on at once: all of them, since every shard takes writes at any place."""
        yield todo

    def delivered(self, shard: Shard, receipt: Mapping[str, Any]) -> None:
        """A worker elsewhere has put a shard in its place: nothing is to be done here."""

    @property
    def resumed(self) -> bool:
        """Whether an earlier run left finished tensors."""
        return self.journal.resumed and bool(self.journal.done)

    def _write(self, handle: int, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        done = 0
        with _explained(self.out):
            while done < len(view):
                done += os.pwrite(handle, view[done:], offset + done)

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write flat elements of one tensor from element `start` on."""
        shard, offset = self.layout.places[name]
        self._write(self._files[shard.name], bytes_of(values), offset + start * values.dtype.itemsize)

    def digest(self, name: str, nbytes: int) -> str:
        """Hash a tensor's bytes as they stand in the file."""
        shard, offset = self.layout.places[name]
        state = xxhash.xxh3_128()
        done = 0
        while done < nbytes:
            piece = os.pread(self._files[shard.name], min(1 << 22, nbytes - done), offset + done)
            if not piece:
                break
            state.update(piece)
            done += len(piece)
        return state.hexdigest()

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Add the small files, make everything durable, and rename the folder into place."""
        with _explained(self.out):
            wanted = {*files, *(shard.name for shard in self.layout.shards)}
            for path in sorted(self.partial.rglob("*"), reverse=True):
                if path.is_file() and str(path.relative_to(self.partial)) not in wanted:
                    path.unlink()
            for name, content in files.items():
                path = self.partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                _sync(path)
            for handle in self._files.values():
                os.fsync(handle)
            self._close()
            _sync(self.partial)
            old = self._step_aside()
            try:
                self.partial.rename(self.out)
            except OSError:
                if old is not None:
                    old.rename(self.out)
                raise
            _sync(self.out.parent)
            if old is not None:
                shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(self.work, ignore_errors=True)
        self._release()

    def _step_aside(self) -> Path | None:
        """Move an existing output away, if it may be replaced."""
        if not (self.out.exists() or self.out.is_symlink()):
            return None
        if not self.overwrite:
            raise OutputError(
                f"{self.out} appeared while it was being made and is left as it is; move it away and run the same "
                "command again: what is finished is kept."
            )
        old = _beside(self.out, f"old-{os.getpid()}-{time.monotonic_ns()}")
        self.out.rename(old)
        return old

    def _close(self) -> None:
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()
        self.journal.close()

    def _release(self) -> None:
        self._lock_path.unlink(missing_ok=True)  # while it is held: whoever has it open finds that it is gone
        os.close(self._lock_handle)

    def abandon(self, keep: bool) -> None:
        """Stop: keep what is finished for the same command to continue, or remove it."""
        self._close()
        if not keep:
            shutil.rmtree(self.partial, ignore_errors=True)
            shutil.rmtree(self.work, ignore_errors=True)
        self._release()


def _recover(out: Path) -> None:
    """Put back an old output that a kill left between the two renames of an overwrite; remove what is left over."""
    left = sorted(out.parent.glob(f".{_literal(out.name)}.plait-old-*"))
    if left and not out.exists():
        left.pop().rename(out)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in _FULL:
            raise  # other errors: some file systems cannot sync a folder
    finally:
        os.close(handle)
