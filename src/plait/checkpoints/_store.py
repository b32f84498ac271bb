"""Remote storage through fsspec: list, read ranges, write, with retries and with errors that name the URL."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from plait.checkpoints._retry import ShortReadError, retrying
from plait.checkpoints._urls import refuse_secrets
from plait.errors import CheckpointError, MissingExtraError, PlaitError

__all__ = ["Store", "tag_of"]

#: what tells one version of an object from another, best first
_TAGS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "Digest", "LastModified", "last_modified")
_TIMES = ("Last-Modified", "mtime", "updated", "modified", "created")
_PACKAGES = {"s3": "'plait[remote]'", "s3a": "'plait[remote]'", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs"}
_PACKAGES |= {"gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs"}
#: storage without folders, where making one could make a bucket
_FLAT = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "http", "https", "hf"}


def tag_of(info: Mapping[str, Any]) -> str:
    """The version of an object, as far as its storage tells."""
    found = next((info[key] for key in (*_TAGS, *_TIMES) if info.get(key)), "")
    if isinstance(found, datetime):  # listings and look-ups of one storage spell times differently
        found = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return str(found).strip('"')


class Store:
    """One place of remote storage.

    Attributes:
        url: what the user calls it.
        root: its path within the file system.
        failure: the error that a refusal becomes: CheckpointError for inputs, OutputError for outputs.
    """

    def __init__(
        self, url: str, failure: type[PlaitError] = CheckpointError, *, fs: Any = None, root: str = ""
    ) -> None:
        refuse_secrets(url)
        self.url = url.rstrip("/")
        self.failure = failure
        self.fs, self.root = (fs, root) if fs is not None else _connect(self.url, failure)
        self.root = self.root.rstrip("/")
        self.web = "http" in _protocols(self.fs)
        # small runs of tensors that several reads share, of all files of this store
        self.runs: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self.lock = threading.Lock()
        self._infos: dict[str, dict[str, Any] | None] = {}
        self._listings: dict[str, dict[str, dict[str, Any]]] = {}
        self._contents: dict[str, bytes] = {}
        self.refresh()

    def refresh(self) -> None:
        """Forget what was listed and looked up: ask the storage anew."""
        self._infos.clear()
        self._listings.clear()
        self._contents.clear()
        self.fs.invalidate_cache()

    def name(self, path: str) -> str:
        """The URL of a path, for messages."""
        return self.url + path.removeprefix(self.root)

    # --- looking ---------------------------------------------------------------------------------------------------

    def info(self, path: str) -> dict[str, Any] | None:
        """What the storage knows of a path; None where nothing is."""
        if path not in self._infos:
            try:
                found = retrying(f"looking up {self.name(path)}", lambda: self.fs.info(path), self.failure)
            except (FileNotFoundError, NotADirectoryError):
                found = None
            self._infos[path] = found
        return self._infos[path]

    def listing(self, path: str) -> dict[str, dict[str, Any]]:
        """Name → facts of everything directly in a folder; empty where there is none."""
        if path not in self._listings:
            try:
                listed = retrying(f"listing {self.name(path)}", lambda: self.fs.ls(path, detail=True), self.failure)
            except (FileNotFoundError, NotADirectoryError):
                listed = list[Any]()
            entries: dict[str, dict[str, Any]] = {}
            for entry in listed:
                full = str(entry["name"]).rstrip("/")
                name = full.rsplit("/", 1)[-1]
                if name not in ("", ".", "..") and full != path.rstrip("/"):
                    entries[name] = entry
            self._listings[path] = entries
        return self._listings[path]

    def find(self, path: str) -> dict[str, dict[str, Any]]:
        """Relative path → facts of every file below a folder."""
        try:
            found = retrying(f"listing {self.name(path)}", lambda: self.fs.find(path, detail=True), self.failure)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        start = len(path.strip("/")) + 1
        return {str(key).strip("/")[start:]: entry for key, entry in found.items() if entry.get("type") == "file"}

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, path: str, start: int, stop: int, what: str) -> bytes:
        """Read one range, and nothing else."""
        doing = f"reading {what} from {self.name(path)}"

        def action() -> bytes:
            data = bytes(self._range(path, start, stop))
            if len(data) > stop - start:
                raise self.failure(f"{doing}: the server sends the whole file when a range is asked for.")
            if len(data) < stop - start:
                raise ShortReadError(f"{len(data)} of {stop - start} bytes came")
            return data

        return retrying(doing, action, self.failure)

    def _range(self, path: str, start: int, stop: int) -> bytes:
        from fsspec.spec import AbstractFileSystem

        if type(self.fs).cat_file is AbstractFileSystem.cat_file and not getattr(self.fs, "async_impl", False):
            return self.fs.cat_file(path, start=start, end=stop, cache_type="none")  # or it reads megabytes ahead
        return self.fs.cat_file(path, start=start, end=stop)

    def contents(self, path: str) -> bytes:
        """The whole of a small file; kept, so that what was checked once is there in the end."""
        if path not in self._contents:
            self._contents[path] = retrying(
                f"reading {self.name(path)}", lambda: bytes(self.fs.cat_file(path)), self.failure
            )
        return self._contents[path]

    def check_ranges(self, path: str) -> None:
        """Refuse a web server that would send a whole file for every block of it."""
        if not self.web:
            return

        def action() -> bool:
            try:
                with self.fs.open(path, "rb", cache_type="none") as stream:
                    stream.seek(1)
                    return len(stream.read(1)) == 1
            except ValueError:  # what fsspec says of a whole file in answer to a range
                return False

        if not retrying(f"asking for a range of {self.name(path)}", action, self.failure):
            raise self.failure(
                f"{self.name(path)}: the server does not answer ranged requests, so that tensors cannot be read one by "
                "one. Download the model and name the local copy."
            )

    # --- writing ---------------------------------------------------------------------------------------------------

    def _parent(self, path: str) -> None:
        if not _FLAT & set(_protocols(self.fs)):
            self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)

    def write(self, path: str, content: bytes) -> None:
        """Put a small file."""

        def action() -> None:
            self._parent(path)
            self.fs.pipe_file(path, content)

        self._write(f"writing {self.name(path)}", action)

    def upload(self, source: Path, path: str) -> dict[str, Any]:
        """Put a local file; return what the storage then knows of it."""

        def action() -> None:
            self._parent(path)
            self.fs.put_file(str(source), path)

        self._write(f"uploading {self.name(path)}", action)
        return self._arrived(path, source.stat().st_size)

    def copy(self, source: str, path: str, size: int) -> dict[str, Any]:
        """Copy an object within the storage; return what the storage then knows of the copy."""
        self._write(f"copying {self.name(source)} to {self.name(path)}", partial(self.fs.cp_file, source, path))
        return self._arrived(path, size)

    def _arrived(self, path: str, size: int) -> dict[str, Any]:
        self.fs.invalidate_cache()
        self._infos.pop(path, None)
        found = self.info(path)
        if found is None or found.get("size") != size:
            there = "is not there" if found is None else f"has {found.get('size')} bytes"
            raise self.failure(f"{self.name(path)} {there} after {size} bytes were written; run the command again.")
        return found

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files; those that are gone already are as wanted."""
        for path in paths:
            try:
                self._write(f"removing {self.name(path)}", partial(self.fs.rm_file, path))
            except FileNotFoundError:
                continue

    def _write(self, doing: str, action: Any) -> None:
        try:
            retrying(doing, action, self.failure)
        except FileNotFoundError as error:
            if doing.startswith("removing"):
                raise
            raise self.failure(f"{doing} failed: {error}. Does the bucket or folder exist?") from None
        finally:
            self._infos.clear()
            self._listings.clear()


def _protocols(fs: Any) -> tuple[str, ...]:
    found = fs.protocol
    return (found,) if isinstance(found, str) else tuple(found)


def _connect(url: str, failure: type[PlaitError]) -> tuple[Any, str]:
    scheme = url.split("://", 1)[0].split("::")[0]
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError(f"{url} needs fsspec: pip install 'plait[remote]'") from None
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        how = f"pip install {package}" if package else str(error)
        raise MissingExtraError(f"{url} needs a library that is not installed: {how}") from None
    except ValueError as error:
        raise failure(f"{url} cannot be opened: {error}.") from None
    return fs, str(path)
