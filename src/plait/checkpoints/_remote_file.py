"""A remote file read by ranges: windows within large tensors, shared runs of small ones, a little ahead of the reader.

A request costs tens of milliseconds whatever its size, so that a block of half a megabyte must not be one. A tensor is
fetched in windows of a few megabytes that never reach beyond its end; neighbours too small for a request of their own
are fetched together. Memory is bounded: two windows a reader, a few runs a model.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plait.checkpoints._ranges import RangedFile
from plait.errors import MissingModelError

if TYPE_CHECKING:
    from plait.checkpoints._remote_path import RemotePath

__all__ = ["RemoteFile", "fetchers"]

WINDOW = 4 << 20  # bytes fetched of a large tensor at a time
SMALL = 256 << 10  # a tensor up to this size is fetched with its neighbours
RUN = 1 << 20  # bytes of neighbours fetched together
HEAD = 64 << 10  # fetched at first: it holds most headers
_RUNS_HELD = 8  # of one model
_WINDOWS_HELD = 4  # of one tensor, if several jobs read it at once
_THREADS = 16

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def fetchers() -> ThreadPoolExecutor:
    """Threads that wait for the network, one set for the process."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="plait-fetch")
        return _pool


@dataclass
class _Segment:
    """A tensor, or a run of small ones."""

    begin: int
    end: int
    what: str
    shared: bool


class RemoteFile(RangedFile):
    """One remote file: its bytes by ranges, from any thread."""

    def __init__(self, path: RemotePath) -> None:
        self.label = str(path)
        self._store = path.store
        self._path = path.path
        self.size, self.tag = path.facts()
        self._store.check_ranges(self._path)
        self._head = b""
        self._segments: list[_Segment] = []
        self._begins: list[int] = []
        self._windows: dict[tuple[int, int], Future[bytes]] = {}
        self._lock = threading.Lock()

    def learn(self, spans: Sequence[tuple[int, int, str]]) -> None:
        """Group neighbours that are small; forget what was fetched for the header."""
        for begin, end, name in spans:
            if begin == end:
                continue
            last = self._segments[-1] if self._segments else None
            small = end - begin <= SMALL
            if last and last.shared and small and end - last.begin <= RUN:
                first = last.what.removeprefix("tensor ").removeprefix("tensors ").split(" to ")[0]
                last.end, last.what = end, f"tensors {first} to {name!r}"
            else:
                self._segments.append(_Segment(begin, end, f"tensor {name!r}", small))
        self._begins = [segment.begin for segment in self._segments]
        self._head = b""

    def held(self, nbytes: int) -> int:
        """Two windows, or the tensor if it is smaller."""
        return min(nbytes, 2 * WINDOW)

    # --- fetching --------------------------------------------------------------------------------------------------

    def _fetch(self, start: int, stop: int, what: str) -> bytes:
        try:
            return self._store.read(self._path, start, stop, what)
        except FileNotFoundError:
            raise MissingModelError(f"{self.label} is gone: it was there when its header was read.") from None

    def _window(self, number: int, window: int) -> Future[bytes]:
        """The bytes of one window, fetched once however many ask for it."""
        segment = self._segments[number]
        key = (number, window)
        with self._lock:
            found = self._windows.get(key)
            if found is None:
                start = segment.begin + window * WINDOW
                stop = min(start + WINDOW, segment.end)
                found = self._windows[key] = fetchers().submit(self._fetch, start, stop, segment.what)
                self._drop_surplus(number, key)
        if segment.shared:
            self._keep_run(number)
        return found

    def _drop_surplus(self, number: int, newest: tuple[int, int]) -> None:
        mine = [key for key in self._windows if key[0] == number]
        for key in mine[: max(0, len(mine) - _WINDOWS_HELD)]:
            if key != newest:
                del self._windows[key]  # whoever waits for it holds it still

    def _keep_run(self, number: int) -> None:
        """Note the use of a run; the one not used for longest goes."""
        runs, mine = self._store.runs, (id(self), number)
        with self._store.lock:
            runs[mine] = self
            runs.move_to_end(mine)
            old = runs.popitem(last=False) if len(runs) > _RUNS_HELD else None
        if old is not None:
            (_, other), file = old
            with file._lock:
                file._windows.pop((other, 0), None)  # whoever waits for it holds it still

    def _take(self, number: int, window: int) -> bytes:
        """Wait for a window; one that failed is not kept."""
        future = self._window(number, window)
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if self._windows.get((number, window)) is future:
                    del self._windows[(number, window)]
            raise

    # --- reading ---------------------------------------------------------------------------------------------------

    def read_bytes(self, offset: int, view: memoryview, what: str) -> None:
        """Fill `view` from an absolute offset, through the windows it touches."""
        if not self._segments:
            self._read_header(offset, view, what)
            return
        number = bisect.bisect_right(self._begins, offset) - 1
        segment, stop = self._segments[number], offset + len(view)
        last = (stop - 1 - segment.begin) // WINDOW
        for window in range((offset - segment.begin) // WINDOW, last + 1):
            start = segment.begin + window * WINDOW
            if stop > start + WINDOW // 2 and start + WINDOW < segment.end:
                self._window(number, window + 1)  # the reader comes there next
            data = self._take(number, window)
            first, end = max(offset, start), min(stop, start + len(data))
            view[first - offset : end - offset] = data[first - start : end - start]
            if end == start + len(data) and not segment.shared:
                with self._lock:
                    self._windows.pop((number, window), None)

    def _read_header(self, offset: int, view: memoryview, what: str) -> None:
        stop = offset + len(view)
        if not self._head:
            self._head = self._fetch(0, min(HEAD, self.size), what)
        if stop > len(self._head):
            self._head += self._fetch(len(self._head), stop, what)
        view[:] = self._head[offset:stop]

    def advise(self, offset: int, length: int) -> None:
        """Begin to fetch the window that a range begins in."""
        if not self._segments or not length:
            return
        number = bisect.bisect_right(self._begins, offset) - 1
        self._window(number, (offset - self._segments[number].begin) // WINDOW)
