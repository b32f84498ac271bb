"""The journal of a half-finished output: which tensors are written, and what their bytes add up to."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from plait.errors import DiskSpaceError, OutputError

__all__ = ["FULL", "Journal", "sealed", "unsealed"]

#: what the system says when there is no room
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sealed(text: str) -> str:
    """Put a checksum in front of a line."""
    return f"{xxhash.xxh3_64_hexdigest(text.encode())} {text}"


def unsealed(line: str) -> Any:
    """Return what a sealed line says.

    Raises:
        ValueError: if it was torn or altered.
    """
    seal, _, text = line.partition(" ")
    if xxhash.xxh3_64_hexdigest(text.encode()) != seal:
        raise ValueError("the checksum differs")
    return json.loads(text)


#: JSON without spaces
_dense = json.JSONEncoder(separators=(",", ":")).encode


class Journal:
    """An append-only file of one sealed JSON object a line; torn or altered lines are ignored.

    Reading it changes nothing: `start` begins or continues it, once what an older plan has left is cleared away.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.done: dict[str, dict[str, Any]] = {}
        self.resumed = self._read()
        self._handle: int | None = None

    def _read(self) -> bool:
        """Return whether an earlier run of the same plan left something to continue."""
        try:
            lines = self.path.read_bytes().decode("ascii", errors="replace").split("\n")
        except OSError:
            return False
        records: list[dict[str, Any]] = []
        for line in lines:
            try:
                records.append(unsealed(line))
            except (ValueError, RecursionError):
                continue
        if not records or records[0].get("fingerprint") != self.fingerprint:
            return False
        self.done = {record["tensor"]: record for record in records if "tensor" in record}
        return True

    def start(self) -> None:
        """Open the file for what comes."""
        mode = os.O_APPEND if self.resumed else os.O_TRUNC
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | mode, 0o644)
        # an empty line ends one that a kill may have torn
        self._append("" if self.resumed else sealed(json.dumps({"fingerprint": self.fingerprint})))

    def _append(self, line: str) -> None:
        assert self._handle is not None
        data = f"{line}\n".encode()
        while data:
            data = data[os.write(self._handle, data) :]

    def finish(self, made: Iterable[tuple[str, str, Sequence[str]]]) -> None:
        """Record that the bytes of tensors are in place: name, hash, and the hashes of the inputs.

        Raises:
            DiskSpaceError, OutputError: if it cannot be written; a part of the line may have been.
        """
        lines = []
        for tensor, digest, inputs in made:
            numbered = {str(i): value for i, value in enumerate(inputs)}
            lines.append(sealed(_dense({"tensor": tensor, "digest": digest, "inputs": numbered})))
        try:
            self._append("\n".join(lines))
        except OSError as error:
            full = error.errno in FULL
            raise (DiskSpaceError if full else OutputError)(
                f"{self.path} cannot be written: {error.strerror}. What is finished is kept; "
                f"{'make room' if full else 'check the disk'} and run the same command again to continue."
            ) from None

    def close(self) -> None:
        """Close the file, leaving it for a later run."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with suppress(OSError):  # what could not be stored is done again
                os.close(handle)
