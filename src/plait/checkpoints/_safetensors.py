"""Safetensors files, read as hostile input: every header fact is checked before any byte of data is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from plait.checkpoints._base import LazyTensor
from plait.checkpoints._dtypes import CODED, QUANTIZED, SAFETENSORS
from plait.checkpoints._ranges import READ_AGAIN, LocalFile, RangedFile
from plait.errors import CheckpointError, QuantizedCheckpointError

__all__ = ["SafetensorsFile"]

_MAX_HEADER = 100_000_000
_LARGEST = 1 << 62


class SafetensorsFile:
    """One open file, wherever it lies: its header, its metadata and its tensors."""

    def __init__(self, file: RangedFile) -> None:
        self.file = file
        self.label = file.label
        self.size = file.size
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, LazyTensor] = {}
        self._parse()

    def _bad(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.label} is not a valid safetensors file: {why} {READ_AGAIN}")

    def _parse(self) -> None:
        if self.size < 8:
            raise self._bad(f"it has {self.size} bytes, fewer than a header needs.")
        prefix = bytearray(8)
        self.file.read_bytes(0, memoryview(prefix), "the header")
        length = int.from_bytes(prefix, "little")
        if length > _MAX_HEADER or 8 + length > self.size:
            raise self._bad(f"its header claims {length} bytes, the file has {self.size}.")
        raw = bytearray(length)
        self.file.read_bytes(8, memoryview(raw), "the header")
        try:
            header = json.loads(raw.decode(), object_pairs_hook=self._unique)
        except (ValueError, RecursionError) as error:
            raise self._bad(f"its header is not JSON ({error}).") from None
        if not isinstance(header, dict):
            raise self._bad("its header is not a JSON object.")
        metadata = header.pop("__metadata__", {})
        if isinstance(metadata, dict):
            self.metadata = {str(k): str(v) for k, v in metadata.items()}
        start = 8 + length
        spans: list[tuple[int, int, str]] = []
        for name, entry in header.items():
            begin, end, tensor = self._entry(name, entry, start)
            spans.append((begin, end, name))
            self.tensors[name] = tensor
        spans.sort()
        self._check_spans(spans, self.size - start)
        self.file.learn([(start + begin, start + end, name) for begin, end, name in spans])

    def _unique(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise self._bad(f"its header names {twice!r} twice.")
        return found

    def _entry(self, name: str, entry: Any, start: int) -> tuple[int, int, LazyTensor]:
        try:
            code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise self._bad(f"the header entry of {name!r} is incomplete.") from None
        if not isinstance(code, str) or not _printable(name):
            raise self._bad(f"the header entry of {name!r} has no proper name or dtype.")
        if code in QUANTIZED:
            raise QuantizedCheckpointError(
                f"tensor {name!r} in {self.label} is stored as {code}: its values mean nothing without their scales. "
                "Convert the model to bfloat16 with the library that quantised it, or use the original checkpoint."
            )
        if code not in SAFETENSORS and code not in CODED:
            raise CheckpointError(f"tensor {name!r} in {self.label} has the unknown dtype {code!r}.")
        for number in (*shape, begin, end):
            if type(number) is not int or not 0 <= number < _LARGEST:  # True and False are no numbers here
                raise self._bad(f"shape or offsets of {name!r} are not natural numbers.")
        dtype = SAFETENSORS.get(code) or CODED[code]
        if prod(shape) * dtype.itemsize != end - begin:
            raise self._bad(f"{name!r} of shape {list(shape)} and dtype {code} does not fill its {end - begin} bytes.")
        return begin, end, _FileTensor(name, shape, dtype, self.file, start + begin)

    def _check_spans(self, spans: list[tuple[int, int, str]], available: int) -> None:
        """Refuse spans, in ascending order, that do not fill the file without a gap."""
        expected, before = 0, ""
        for begin, end, name in spans:
            if end > available:
                raise self._bad(
                    f"{name!r} ends at byte {end} of the data, but only {available} are there: the file was cut short."
                )
            if begin < expected:
                raise self._bad(f"{name!r} overlaps {before!r}.")
            if begin > expected:
                raise self._bad(f"{begin - expected} bytes before {name!r} belong to no tensor.")
            expected, before = end, name
        if expected != available:
            raise self._bad(f"{available - expected} bytes at its end belong to no tensor.")


def _printable(name: str) -> bool:
    """Whether a name can be written again: half of a surrogate pair cannot."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class _FileTensor(LazyTensor):
    """A tensor at a known offset of an open file."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, file: RangedFile, offset: int) -> None:
        super().__init__(name, shape, dtype, file.label)
        self._file = file
        self._offset = offset

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Read [start, stop); safe from any thread."""
        end = self.numel if stop is None else stop
        size = (end - start) * self.dtype.itemsize
        if scratch is None or scratch.numel() < size:
            scratch = torch.empty(max(size, 1), dtype=torch.uint8)
        view = scratch[:size]
        if size:
            buffer: Any = view.numpy()
            self.fill(start, end, memoryview(buffer))
        return view.view(self.dtype)

    def fill(self, start: int, stop: int, into: memoryview) -> None:
        """Read [start, stop) into a buffer with one positioned read."""
        if stop > start:
            self._file.read_bytes(self._offset + start * self.dtype.itemsize, into, f"tensor {self.name!r}")

    def follows(self, other: LazyTensor) -> bool:
        """Whether the other's bytes end where its own begin, in a file of this machine."""
        return (
            isinstance(other, _FileTensor)
            and other._file is self._file
            and other._offset + other.nbytes == self._offset
            and other.dtype is self.dtype
            and isinstance(self._file, LocalFile)
        )

    def prefetch(self, start: int, stop: int) -> None:
        """Start reading ahead in the background."""
        width = self.dtype.itemsize
        self._file.advise(self._offset + start * width, (stop - start) * width)

    @property
    def readahead(self) -> int:
        """What the file keeps between two blocks."""
        return self._file.held(self.nbytes)
