"""The output folder while it grows: a hidden sibling, locked, sized in advance, renamed when complete."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from plait.checkpoints import Layout
from plait.engine._hashes import bytes_of
from plait.engine._plan import Plan
from plait.errors import DiskSpaceError, OutputError

__all__ = ["GrowingOutput", "check_target", "existing_parent"]

LOCK, JOURNAL = ".lock", ".journal"


def existing_parent(path: Path) -> Path:
    """The closest folder above that exists."""
    for parent in path.resolve().parents:
        if parent.is_dir():
            return parent
    return Path.cwd()


def check_target(plan: Plan, out: Path, overwrite: bool) -> None:
    """Refuse an output that would destroy something or cannot fit, before anything is written.

    Raises:
        OutputError: if it exists (without `overwrite`), or is or contains or lies in an input.
        DiskSpaceError: if the file system has too little room.
    """
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
            raise OutputError(f"the output {out} exists already; choose another, or pass --overwrite (overwrite=True).")
        if not out.is_dir() or out.is_symlink():
            raise OutputError(f"the output {out} is not a folder; it will not be overwritten.")
        known = any(out.glob("*.safetensors")) or (out / "plait.json").exists() or not any(out.iterdir())
        if not known:
            raise OutputError(f"the output {out} is a folder without a model; it will not be overwritten.")
    parent = existing_parent(out)
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


def partial_of(out: Path) -> Path:
    """Where an output grows: a hidden folder beside it."""
    target = out.absolute()
    return target.with_name(f".{target.name}.plait-partial")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.2f} MB"


class GrowingOutput:
    """Writes tensors at their offsets from any thread, and puts the finished folder in its place at once."""

    def __init__(self, out: Path, layout: Layout, fingerprint: str) -> None:
        from plait.engine._journal import Journal

        self.out = out.absolute()
        self.layout = layout
        self.partial = partial_of(out)
        self.partial.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.partial / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(f"another process is writing {out}; wait for it, or choose another output.") from None
        self.journal = Journal(self.partial / JOURNAL, fingerprint)
        self._files: dict[str, int] = {}
        if not self.journal.resumed:
            self._clear()
        self._open()

    @property
    def resumed(self) -> bool:
        """Whether an earlier run left finished tensors."""
        return self.journal.resumed and bool(self.journal.done)

    def _clear(self) -> None:
        for path in self.partial.iterdir():
            if path.name in (LOCK, JOURNAL):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _open(self) -> None:
        for shard in self.layout.shards:
            path = self.partial / shard.name
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self._files[shard.name] = handle
            os.ftruncate(handle, shard.size)
            self._write(handle, shard.header, 0, path)

    def _write(self, handle: int, data: bytes | memoryview, offset: int, path: Path | str) -> None:
        view = memoryview(data)
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(handle, view[done:], offset + done)
            except OSError as error:
                raise DiskSpaceError(
                    f"writing {path} failed: {error.strerror}. What is finished is kept; make room and run the same "
                    "command again to continue."
                ) from None

    def write(self, name: str, start: int, values: object) -> None:
        """Write flat elements of one tensor from element `start` on."""
        from torch import Tensor

        assert isinstance(values, Tensor)
        shard, offset = self.layout.places[name]
        self._write(self._files[shard.name], bytes_of(values), offset + start * values.dtype.itemsize, shard.name)

    def digest(self, name: str, nbytes: int) -> str:
        """Hash a tensor's bytes as they stand in the file."""
        import xxhash

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
        for name, content in files.items():
            path = self.partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for handle in self._files.values():
            os.fsync(handle)
        self.close()
        wanted = {*files, *(shard.name for shard in self.layout.shards)}
        for path in sorted(self.partial.rglob("*"), reverse=True):
            if (
                path.is_file()
                and str(path.relative_to(self.partial)) not in wanted
                and path.name not in (LOCK, JOURNAL)
            ):
                path.unlink()
        for name in files:
            _sync(self.partial / name)
        self.journal.remove()
        self._lock.release()
        (self.partial / LOCK).unlink(missing_ok=True)
        _sync(self.partial)
        old: Path | None = None
        if self.out.exists():
            old = self.out.with_name(f".{self.out.name}.plait-old-{os.getpid()}-{time.monotonic_ns()}")
            self.out.rename(old)
        self.partial.rename(self.out)
        _sync(self.out.parent)
        if old is not None:
            shutil.rmtree(old)

    def close(self) -> None:
        """Close the files."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    def abandon(self, keep: bool) -> None:
        """Stop: keep what is finished for the same command to continue, or remove it."""
        self.close()
        self.journal.close()
        self._lock.release()
        if not keep:
            shutil.rmtree(self.partial, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems cannot sync a folder
        pass
    finally:
        os.close(handle)
