"""One output shard being made apart from the others, and the two ways it is delivered."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from plait.checkpoints import Shard
from plait.checkpoints._store import Store, tag_of
from plait.engine._hashes import bytes_of
from plait.errors import DiskSpaceError, OutputError

__all__ = ["FolderSink", "RemoteSink", "ShardFile", "Sink"]


_SPOOL = "plait-spool-"


def _flat(shard: Shard) -> str:
    """A shard's name without the folder that it will lie in."""
    return shard.name.replace("/", "--")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskSpaceError(
                f"the disk filled up while writing {path}: {error.strerror}. What is finished is kept; make room there "
                "(or choose another --spool) and run the same command again."
            ) from None
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from None


class ShardFile:
    """A file with a shard's header, sized in advance, that takes tensors at their offsets from any thread."""

    def __init__(self, path: Path, shard: Shard, earlier: Path | None = None) -> None:
        self.path = path
        self.shard = shard
        self._offsets: dict[str, int] = {}
        offset = len(shard.header)
        for entry in shard.entries:
            self._offsets[entry.name] = offset
            offset += entry.nbytes
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if earlier is not None:
                shutil.copyfile(earlier, path)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            os.ftruncate(self._handle, shard.size)
        self._put(shard.header, 0)

    def _put(self, data: Any, offset: int) -> None:
        view, done = memoryview(data), 0
        with _explained(self.path):
            while done < len(view):
                done += os.pwrite(self._handle, view[done:], offset + done)

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write flat elements of one tensor from element `start` on."""
        self._put(bytes_of(values), self._offsets[name] + start * values.dtype.itemsize)

    def lock(self) -> None:
        """Show other processes that somebody is at work here, until the file is closed."""
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def sync(self) -> None:
        """Make what was written durable."""
        with _explained(self.path):
            os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def discard(self) -> None:
        """Close and remove the file; a delivered one is gone already."""
        self.path.unlink(missing_ok=True)
        if self.path.parent.name.startswith(_SPOOL):
            shutil.rmtree(self.path.parent, ignore_errors=True)
        self.close()


class Sink(Protocol):
    """Where shards go; it travels to the worker that makes them."""

    def begin(self, shard: Shard, resume: bool = False) -> ShardFile:
        """Open a file to make a shard in; with `resume`, one that holds what an earlier run has finished."""
        ...

    def deliver(self, file: ShardFile) -> dict[str, Any]:
        """Put a finished shard in its place; return what the journal keeps about it."""
        ...


@dataclass(frozen=True)
class FolderSink:
    """A folder that every worker sees. A shard is made under a name of its own and renamed when it is whole.

    So a worker that was given up but is still writing cannot spoil what its successor has made.
    """

    partial: Path
    work: Path

    def begin(self, shard: Shard, resume: bool = False) -> ShardFile:
        """Open a file beside the output."""
        if not self.partial.is_dir():
            raise OutputError(
                f"a worker does not see {self.partial}: the output must lie on a file system that all of them share, "
                "or be a URL."
            )
        path = self.work / f"{_flat(shard)}.{uuid.uuid4().hex}.part"
        return ShardFile(path, shard, self.partial / shard.name if resume else None)

    def deliver(self, file: ShardFile) -> dict[str, Any]:
        """Rename the file into the growing output."""
        file.sync()
        with _explained(file.path):
            file.path.replace(self.partial / file.shard.name)
        file.close()
        return {}


@dataclass(frozen=True)
class RemoteSink:
    """Storage behind a URL. A shard is made in a spool on this machine and uploaded when it is whole."""

    url: str
    prefix: str
    spool: Path | None

    def begin(self, shard: Shard, resume: bool = False) -> ShardFile:
        """Open a file in the spool."""
        del resume  # an object is whole or absent
        home = self.spool or Path(tempfile.gettempdir())
        with _explained(home):
            home.mkdir(parents=True, exist_ok=True)
            _sweep(home)
            making = Path(tempfile.mkdtemp(prefix=f".{_SPOOL}", dir=home))
        try:
            file = ShardFile(making / _flat(shard), shard)
            file.lock()  # before it has the name that others look for when they clear away what is left
            with _explained(home):
                file.path = making.rename(home / making.name[1:]) / _flat(shard)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        return file

    def deliver(self, file: ShardFile) -> dict[str, Any]:
        """Upload the file and remove it."""
        file.sync()
        store = Store(self.url, OutputError)
        found = store.upload(file.path, f"{store.root}/{self.prefix}{file.shard.name}")
        return {"size": found["size"], "tag": tag_of(found)}


def _sweep(home: Path) -> None:
    """Remove what killed processes have left in a spool: files that nobody holds the lock of."""
    for folder in home.iterdir():
        if folder.name.startswith(_SPOOL):
            try:
                _remove_abandoned(folder)
            except OSError:
                continue  # gone meanwhile, or another user's


def _remove_abandoned(folder: Path) -> None:
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: somebody is at work
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)
