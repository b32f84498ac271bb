"""The journal of a half-finished output: which tensors are written, and what their bytes add up to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from plait.errors import DiskSpaceError

__all__ = ["Journal"]


class Journal:
    """An append-only file of one JSON object a line; a torn last line is ignored.

    Reading it changes nothing: `start` begins or continues it, once what an older plan has left is cleared away.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.done: dict[str, dict[str, Any]] = {}
        self.resumed = self._read()
        self._stream: TextIO | None = None

    def _read(self) -> bool:
        """Return whether an earlier run of the same plan left something to continue."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return False
        records: list[dict[str, Any]] = []
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                records.append(record)
        if not records or records[0].get("fingerprint") != self.fingerprint:
            return False
        self.done = {r["tensor"]: r for r in records[1:] if isinstance(r.get("tensor"), str)}
        return True

    def start(self) -> None:
        """Open the file for what comes."""
        self._stream = self.path.open("a" if self.resumed else "w", encoding="utf-8")
        if self.resumed:
            self._stream.write("\n")  # ends a line that a kill may have torn
        else:
            self._append({"fingerprint": self.fingerprint})

    def _append(self, record: dict[str, Any]) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps(record, separators=(",", ":")) + "\n")
        self._stream.flush()

    def finish(self, tensor: str, digest: str, inputs: dict[str, str]) -> None:
        """Record that a tensor's bytes are in place."""
        try:
            self._append({"tensor": tensor, "digest": digest, "inputs": inputs})
        except OSError as error:
            raise DiskSpaceError(
                f"{self.path} cannot be written: {error.strerror}. What is finished is kept; make room and run the "
                "same command again to continue."
            ) from None

    def close(self) -> None:
        """Close the file, leaving it for a later run."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            try:
                stream.close()
            except OSError:
                return  # what could not be flushed is done again
