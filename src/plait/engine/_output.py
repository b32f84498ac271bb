"""The output folder while it grows: a hidden sibling, locked, sized in advance, renamed when complete.

What stands beside an output meanwhile is told in `plait.engine._places`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from plait.checkpoints import Layout, Shard
from plait.engine._disk import (
    explained,
    put_back,
    recover,
    remove_old,
    remove_work,
    reserve,
    sync_folder,
    take_lock,
)
from plait.engine._facts import FactStore
from plait.engine._hashes import bytes_of
from plait.engine._journal import FULL, Journal
from plait.engine._places import beside, exists_already, partial_of, work_of
from plait.engine._plan import Job
from plait.engine._shard_file import FolderSink
from plait.errors import DiskSpaceError, OutputError

__all__ = ["GrowingOutput"]


class GrowingOutput:
    """Writes tensors at their offsets from any thread, and puts the finished folder in its place at once."""

    def __init__(self, out: Path, layout: Layout, fingerprint: str, overwrite: bool = False) -> None:
        self.out = out.absolute()
        self.layout = layout
        self.overwrite = overwrite
        self.partial, self.work = partial_of(out), work_of(out)
        self._lock_path = beside(out, "lock")
        self._files: dict[str, int] = {}
        self.landed = False  # an earlier run has put the output in place already
        self._fresh = False  # nothing in the folder is an earlier run's
        self._durable = True
        with explained(out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.partial, self.work):
                if path.is_symlink() or (path.exists() and not path.is_dir()):
                    raise OutputError(f"{path} is in the way: it is not a folder of plait's. Remove it.")
            self._lock_handle = take_lock(self._lock_path, out)
            try:
                self._begin(fingerprint)
            except BaseException:
                self.abandon(keep=not self._fresh)
                raise

    def _begin(self, fingerprint: str) -> None:
        self.journal = Journal(self.work / "journal", fingerprint)
        recover(self.out)
        if not self.overwrite and (self.out.exists() or self.out.is_symlink()):
            self._find_landed()
            return
        self.partial.mkdir(exist_ok=True)
        self.work.mkdir(exist_ok=True)
        if not self.journal.resumed:  # of another plan: nothing of it may be taken for ours
            for folder in (self.work, self.partial):
                shutil.rmtree(folder)
                folder.mkdir()
            self._fresh = True
        for left in self.work.glob("*.part"):  # shards that workers elsewhere did not finish
            left.unlink()
        self.journal.start()
        for shard in self.layout.shards:
            path = self.partial / shard.name
            path.parent.mkdir(exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            self._files[shard.name] = handle
            os.ftruncate(handle, shard.size)
            reserve(handle, shard.size)
            self._write(handle, shard.header, 0)

    def _find_landed(self) -> None:
        """Take an output that stands there for this run's own if each byte is; refuse it otherwise."""
        left = not self.partial.exists()  # or another output has appeared since that of this run was begun
        if left and self.journal.resumed:
            with suppress(OSError):
                for shard in self.layout.shards:
                    self._files[shard.name] = os.open(self.out / shard.name, os.O_RDONLY | os.O_NOFOLLOW)
                self.landed = all(
                    os.fstat(handle).st_size == shard.size and os.pread(handle, len(shard.header), 0) == shard.header
                    for shard, handle in zip(self.layout.shards, self._files.values(), strict=True)
                ) and all(
                    self.journal.done.get(entry.name, {}).get("digest") == self.digest(entry.name, entry.nbytes)
                    for entry in self.layout.entries
                )
        if not self.landed:
            if left:
                remove_work(self.work)
            raise exists_already(self.out)

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
        """A worker elsewhere has put a shard in its place: it is the file to look at from now on."""
        del receipt
        with explained(self.out):
            handle = os.open(self.partial / shard.name, os.O_RDWR | os.O_NOFOLLOW)
            os.close(self._files[shard.name])
            self._files[shard.name] = handle

    @property
    def resumed(self) -> bool:
        """Whether an earlier run left finished tensors."""
        return self.journal.resumed and bool(self.journal.done)

    def _write(self, handle: int, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        done = 0
        with explained(self.out):
            while done < len(view):
                done += os.pwrite(handle, view[done:], offset + done)

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write flat elements of one tensor from element `start` on."""
        shard, offset = self.layout.places[name]
        self._write(self._files[shard.name], bytes_of(values), offset + start * values.dtype.itemsize)

    def digest(self, name: str, nbytes: int) -> str:
        """Hash a tensor's bytes as they stand in the file; an empty text if they cannot be read."""
        shard, offset = self.layout.places[name]
        state = xxhash.xxh3_128()
        done = 0
        while done < nbytes:
            try:
                piece = os.pread(self._files[shard.name], min(1 << 22, nbytes - done), offset + done)
            except OSError:
                return ""
            if not piece:
                break
            state.update(piece)
            done += len(piece)
        return state.hexdigest()

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Add the small files, make everything durable, and rename the folder into place."""
        if not self.landed:
            with explained(self.out):
                self._check_place()
                self._weed({*files, *self._files})
                for name, content in files.items():
                    self._put(self.partial / name, content)
                self._sync()
                self._check_place()
                self._close()
                old = self._step_aside()
                self.partial.rename(self.out)
                sync_folder(self.out.parent)
                if old is not None:
                    remove_old(old, self.out)
        self._close()
        remove_work(self.work)
        self._release()

    def _weed(self, wanted: set[str]) -> None:
        """Remove what a run of another version or another hand has put into the folder."""
        for folder, folders, names in os.walk(self.partial, topdown=False):
            for path in (Path(folder) / name for name in (*folders, *names)):
                name = str(path.relative_to(self.partial))
                if path.is_symlink() or (not path.is_dir() and name not in wanted):
                    path.unlink()
                elif not path.is_dir():
                    continue
                elif not any(other.startswith(f"{name}/") for other in wanted):
                    path.rmdir()

    def _check_place(self) -> None:
        """Refuse to go on if the folder is no longer the one that was written to."""
        for name, handle in self._files.items():
            with suppress(OSError):
                if os.path.samestat(os.lstat(self.partial / name), os.fstat(handle)):
                    continue
            raise OutputError(
                f"{self.partial / name} was removed or replaced while it was being written. Leave {self.partial} alone "
                "and run the same command again."
            )

    def _put(self, path: Path, content: bytes) -> None:
        for folder in reversed(path.relative_to(self.partial).parents[:-1]):
            (self.partial / folder).mkdir(exist_ok=True)
        self._files[str(path.relative_to(self.partial))] = handle = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666
        )
        self._write(handle, content, 0)

    def _sync(self) -> None:
        """Have the disk store every file and folder; if it fails, nothing that was written can be trusted again.

        The system reports such an error once and then forgets it: the next run would find the right bytes in memory.
        """
        try:
            for handle in self._files.values():
                os.fsync(handle)
            for folder in sorted({(self.partial / name).parent for name in self._files} | {self.partial}, reverse=True):
                sync_folder(folder)
        except OSError as error:
            self._check_place()
            self._durable = False
            raise (DiskSpaceError if error.errno in FULL else OutputError)(
                f"the disk could not store the output {self.out}: {error.strerror}. Nothing of it is kept, since what "
                f"was written may be lost; {'make room' if error.errno in FULL else 'check the disk'} and run the same "
                "command again."
            ) from None

    def _step_aside(self) -> Path | None:
        """Move an existing output away, if it may be replaced."""
        if not (self.out.exists() or self.out.is_symlink()):
            return None
        if not self.overwrite:
            raise OutputError(
                f"{self.out} appeared while it was being made and is left as it is; move it away and run the same "
                "command again: what is finished is kept."
            )
        old = beside(self.out, f"old-{os.getpid()}-{time.monotonic_ns()}")
        self.out.rename(old)
        return old

    def _close(self) -> None:
        while self._files:
            with suppress(OSError):  # everything that counts has been synced
                os.close(self._files.popitem()[1])
        self.journal.close()

    def _release(self) -> None:
        if self._lock_handle < 0:
            return
        handle, self._lock_handle = self._lock_handle, -1
        with suppress(OSError):  # while it is held: whoever has it open finds that it is gone
            if os.path.samestat(os.lstat(self._lock_path), os.fstat(handle)):
                self._lock_path.unlink()
        os.close(handle)

    def abandon(self, keep: bool) -> None:
        """Stop: keep what is finished for the same command to continue, or remove it."""
        if self._lock_handle < 0:
            return
        self._close()
        with suppress(OSError):
            put_back(self.out)
        if not (keep and self._durable):
            remove_work(self.work)
            shutil.rmtree(self.partial, ignore_errors=True)
        self._release()
