"""A process that has plait loaded and forks a child for every merge, so that a kill costs milliseconds.

`Warm` is its handle in a test. In the child, every call that changes the file system is counted; a `Fault` names the
call at which it is killed (before it, or halfway through a write), fails, or waits. The process has one thread when it
forks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "src"


@dataclass(frozen=True)
class Fault:
    """What happens to a child.

    Attributes:
        at: the call, counted from 1; 0 for none.
        half: let half of the bytes be written first; at a call that writes nothing, nothing happens.
        error: the error the call fails with, instead of a kill; all later calls of `calls` fail too.
        calls: names of the calls that are counted; all by default.
        delay: be killed after that many seconds instead.
        limit: bound on the size of a file, in bytes.
        read: from the call `at` on, reading of files under `under` gives this error, or "short" for an early end.
        under: see `read`.
        swap: at the call `at`, move (from, to) and go on.
        append: at the call `at`, add a byte to this file and go on.
        user: run as this user.
    """

    at: int = 0
    half: bool = False
    error: int = 0
    calls: tuple[str, ...] = ()
    delay: float = 0.0
    limit: int = 0
    read: str = ""
    under: str = ""
    swap: tuple[tuple[str, str], ...] = ()
    append: str = ""
    user: int = 0


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        killed: by SIGKILL, or by the timer.
        error: class of the error, empty if the merge was done.
        message: its message.
        exit_code: what the command line would return.
        resumed: tensors taken over.
        calls: (name, file) of every call; an open file by its inode, "#123".
    """

    killed: bool = False
    error: str = ""
    message: str = ""
    exit_code: int = 0
    resumed: int = 0
    calls: tuple[tuple[str, str], ...] = field(default=(), repr=False)


class Warm:
    """The process; `run` forks a child and waits for it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, recipe: Mapping[str, Any] | Path, out: Path, fault: Fault | None = None, **options: Any) -> Ending:
        """Merge in a child of its own; one thread by default, so that the calls come in nearly the same order."""
        return self.run_many([(recipe, out, fault, options)])[0]

    def run_many(self, runs: list[tuple[Any, Path, Fault | None, dict[str, Any]]]) -> list[Ending]:
        """Merge in several children at once."""
        assert self.process.stdin is not None and self.process.stdout is not None
        listed = [
            {
                "recipe": str(recipe) if isinstance(recipe, Path) else recipe,
                "out": str(out),
                "fault": asdict(fault or Fault()),
                "options": {"threads": 1, **options},
            }
            for recipe, out, fault, options in runs
        ]
        print(json.dumps(listed), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the warm process died"
        endings = [Ending(**found) for found in json.loads(answer)]
        return [replace(e, calls=tuple((call, file) for call, file in e.calls)) for e in endings]

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait() == 0


# --- in the child ------------------------------------------------------------------------------------------------


class _Counter:
    def __init__(self, fault: Fault) -> None:
        import threading

        self.fault = fault
        self.count = 0
        self.calls: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def __call__(self, name: str, place: Any, data: Any, call: Any) -> Any:
        """Count one call and do to it what the fault says."""
        fault = self.fault
        with self.lock:
            if fault.calls and name not in fault.calls:
                return call(data)
            self.count += 1
            self.calls.append((name, _place(place)))
            if not fault.at or fault.delay or self.count < fault.at or (self.count > fault.at and not fault.error):
                return call(data)
            if fault.swap or fault.append:
                self._meddle()
                return call(data)
            if fault.read:
                return call(data)
            if fault.half and data is not None and len(data) > 1:
                call(data[: len(data) // 2])
            elif fault.half:
                return call(data)
            if fault.error:
                raise OSError(fault.error, os.strerror(fault.error), place if isinstance(place, str) else None)
            os.kill(os.getpid(), signal.SIGKILL)

    def _meddle(self) -> None:
        for source, target in self.fault.swap:
            _RENAME(source, target)
        if self.fault.append:
            handle = os.open(self.fault.append, os.O_WRONLY | os.O_APPEND)
            _WRITE(handle, b"\0")
            os.close(handle)


_RENAME, _WRITE = os.rename, os.write


def _place(place: Any) -> str:
    if isinstance(place, int):
        status = os.fstat(place)
        return f"#{status.st_ino}"
    return os.fsdecode(place)


def _install(fault: Fault) -> _Counter:
    """Put the counter before every call that changes the file system."""
    import io

    count = _Counter(fault)

    def patch(name: str) -> None:
        real = getattr(os, name)

        def counted(place: Any, *rest: Any, **options: Any) -> Any:
            return count(name, place, None, lambda _: real(place, *rest, **options))

        setattr(os, name, counted)

    for name in ("ftruncate", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
        patch(name)
    pwrite, write, open_, preadv, io_open = os.pwrite, os.write, os.open, os.preadv, io.open

    def counted_pwrite(handle: int, data: Any, offset: int) -> int:
        return count("pwrite", handle, data, lambda part: pwrite(handle, part, offset))

    def counted_write(handle: int, data: Any) -> int:
        return count("write", handle, data, lambda part: write(handle, part))

    def counted_open(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            return count("create", path, None, lambda _: open_(path, flags, *rest, **options))
        return open_(path, flags, *rest, **options)

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            return count("write", self.fileno(), bytes(data), super().write)

    def counted_io_open(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if mode not in ("w", "a", "wb"):
            return io_open(file, mode, buffering, *rest, **options)
        raw = count("create", file, None, lambda _: Raw(file, mode[0]))
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **options)

    def faulty_preadv(handle: int, buffers: Any, offset: int) -> int:
        if fault.read and count.count >= fault.at and fault.under in str(Path(f"/proc/self/fd/{handle}").readlink()):
            if fault.read == "short":
                return 0
            raise OSError(int(fault.read), os.strerror(int(fault.read)))
        return preadv(handle, buffers, offset)

    os.pwrite, os.write, os.open, io.open = counted_pwrite, counted_write, counted_open, counted_io_open
    os.preadv = faulty_preadv
    return count


def _child(task: dict[str, Any], answer: int) -> None:
    import resource

    import plait
    from plait.errors import PlaitError

    report = os.fdopen(answer, "w")
    fault = Fault(**task["fault"])
    signal.alarm(100)  # whatever happens, the test ends
    if fault.delay:
        signal.setitimer(signal.ITIMER_REAL, fault.delay)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if fault.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.limit, resource.RLIM_INFINITY))
    if fault.user:
        os.setgroups([])
        os.setresuid(fault.user, fault.user, fault.user)
    count = _install(fault)
    found: dict[str, Any] = {}
    try:
        result = plait.merge(task["recipe"], task["out"], **task["options"])
        found["resumed"] = result.resumed
    except PlaitError as error:
        found |= {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
    except BaseException as error:
        found |= {"error": f"!{type(error).__name__}", "message": str(error), "exit_code": -1}
    report.write(json.dumps({**found, "calls": count.calls}))
    report.flush()
    os._exit(0)


def _serve() -> None:
    """Answer until the input ends."""
    import gc

    import torch

    import plait

    torch.set_num_threads(1)
    # once in memory, so that what is loaded late is loaded before the first fork
    ones = {"w": torch.ones(4)}
    plait.merge_state_dicts("ties", [ones, ones], {"w": torch.zeros(4)}, threads=1)
    import yaml  # noqa: F401

    gc.freeze()
    for line in sys.stdin:
        children = []
        for task in json.loads(line):
            receive, send = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(receive)
                _child(task, send)
            os.close(send)
            children.append((pid, receive))
        answers = []
        for pid, receive in children:
            with os.fdopen(receive) as stream:
                text = stream.read()
            _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                number = os.WTERMSIG(status)
                timer = number == signal.SIGALRM and task["fault"]["delay"]
                answers.append({"killed": True} if number == signal.SIGKILL or timer else {"error": f"signal {number}"})
            else:
                answers.append(json.loads(text))
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    _serve()
