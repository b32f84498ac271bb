"""From C source to a function: compiled once by the system's compiler, kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Compiler", "build", "cache_folder", "compiler"]

#: nothing here may change a bit: no contraction, no reassociation, no flushing of small numbers
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


class Compiler:
    """A C compiler, and what its results depend on.

    Attributes:
        path: the program.
        native: the flag that lets it use all this processor has.
        identity: its version and the features of the processor, as macros.
    """

    def __init__(self, path: str, native: str, identity: str) -> None:
        self.path = path
        self.native = native
        self.identity = identity

    def key(self, source: str) -> str:
        """Name of the library that this source becomes here."""
        facts = "\0".join((self.path, self.native, *_FLAGS, self.identity, source))
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def compile(self, source: str, target: Path) -> None:
        """Write the shared library.

        Raises:
            OSError, subprocess.SubprocessError: if the compiler fails.
        """
        handle, name = tempfile.mkstemp(dir=target.parent, suffix=".so.part")
        os.close(handle)
        try:
            command = [self.path, *_FLAGS, self.native, "-x", "c", "-", "-o", name, "-lm"]
            subprocess.run(command, input=source.encode(), check=True, capture_output=True, timeout=120)
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)


@cache
def compiler() -> Compiler | None:
    """The system's C compiler, or None."""
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        path = shutil.which(name)
        for native in ("-march=native", "-mcpu=native") if path else ():
            command = [str(path), native, "-dM", "-E", "-x", "c", os.devnull]
            try:
                done = subprocess.run(command, check=True, capture_output=True, timeout=30)
            except (OSError, subprocess.SubprocessError):
                continue
            return Compiler(str(path), native, done.stdout.decode(errors="replace"))
    return None


def _folder() -> Path | None:
    """Where libraries are kept: a folder that nobody else can write to."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    folder = Path(home) / "plait" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = folder.stat()
    except OSError:
        return None
    return folder if facts.st_uid == os.getuid() and not facts.st_mode & 0o022 and os.access(folder, os.W_OK) else None


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="plait-kernels-")


def cache_folder() -> Path:
    """Where compiled code is kept: the user's cache, or a folder of this process where that cannot be trusted."""
    return _folder() or Path(_scratch().name)


def build(source: str) -> tuple[Any, bool] | None:
    """Return the function of a source and whether it had to be compiled; None where that is impossible."""
    found = compiler()
    if found is None:
        return None
    target = cache_folder() / f"{found.key(source)}.so"
    fresh = not target.exists()
    try:
        if fresh:
            found.compile(source, target)
        function = ctypes.CDLL(str(target)).run
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    function.restype = ctypes.c_int
    function.argtypes = (
        [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 2 + [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    )
    return function, fresh
