"""The journal of a half-finished output: which tensors are written, and what their bytes add up to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plait.errors import CheckpointError

__all__ = ["Journal"]


class Journal:
    """An append-only file of one JSON object a line; a torn last line is ignored."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        self.resumed = self._read(fingerprint)
        self._stream = path.open("a" if self.resumed else "w", encoding="utf-8")
        if self.resumed:
            self._stream.write("\n")  # ends a line that a kill may have torn
        else:
            self._append({"fingerprint": fingerprint})

    def _read(self, fingerprint: str) -> bool:
        """Return whether an earlier run of the same plan left something to continue."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return False
        records: list[dict[str, Any]] = []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict):
                records.append(record)
        if not records or records[0].get("fingerprint") != fingerprint:
            return False
        self.done = {r["tensor"]: r for r in records[1:] if isinstance(r.get("tensor"), str)}
        return True

    def _append(self, record: dict[str, Any]) -> None:
        self._stream.write(json.dumps(record, separators=(",", ":")) + "\n")
        self._stream.flush()

    def finish(self, tensor: str, digest: str, inputs: dict[str, str]) -> None:
        """Record that a tensor's bytes are in place."""
        try:
            self._append({"tensor": tensor, "digest": digest, "inputs": inputs})
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error.strerror}.") from None

    def close(self) -> None:
        """Close the file, leaving it for a later run."""
        self._stream.close()

    def remove(self) -> None:
        """Close and delete it: the output is complete."""
        self.close()
        self.path.unlink()
