"""Content hashes of inputs, taken along the way while tensors are read."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor

from plait.checkpoints import Checkpoint, LazyTensor

__all__ = ["InputHashes", "digest_of", "model_hash"]

_CHUNK = 1 << 20


def bytes_of(values: Tensor) -> Any:
    """The raw bytes of a flat CPU tensor, without a copy."""
    buffer: Any = values.contiguous().view(torch.uint8).numpy()
    return memoryview(buffer)


class _Running:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.state = xxhash.xxh3_128()
        self.reached = 0


class InputHashes:
    """Hashes each tensor from its first full pass in order; later passes and gaps are ignored."""

    def __init__(self) -> None:
        self._running: dict[int, _Running] = {}
        self._done: dict[int, str] = {}
        self._lock = threading.Lock()

    def update(self, tensor: LazyTensor, start: int, count: int, data: Any) -> None:
        """Take note of the bytes of elements that were read."""
        key = id(tensor)
        if key in self._done or tensor.derived:
            return
        with self._lock:
            running = self._running.setdefault(key, _Running())
        with running.lock:
            if start != running.reached or key in self._done:
                return
            running.state.update(data)
            running.reached += count
            if running.reached == tensor.numel:
                self._done[key] = running.state.hexdigest()
                self._running.pop(key, None)

    def whole(self, tensors: Sequence[LazyTensor], data: memoryview) -> None:
        """Take note of all bytes of tensors that were read at once."""
        end = 0
        for tensor in tensors:
            start, end = end, end + tensor.nbytes
            if id(tensor) not in self._done:
                self._done[id(tensor)] = xxhash.xxh3_128_hexdigest(data[start:end])

    def get(self, tensor: LazyTensor) -> str:
        """Return a tensor's hash, reading what no pass has read."""
        found = self._done.get(id(tensor))
        if found is None:
            found = self._done[id(tensor)] = digest_of(tensor)
        return found

    def restore(self, tensor: LazyTensor, digest: str) -> None:
        """Take over a hash from the journal of an earlier run."""
        self._done[id(tensor)] = digest


def digest_of(tensor: LazyTensor) -> str:
    """Hash one tensor by reading it."""
    state = xxhash.xxh3_128()
    for start in range(0, tensor.numel, _CHUNK):
        state.update(bytes_of(tensor.read(start, min(start + _CHUNK, tensor.numel))))
    return state.hexdigest()


def model_hash(checkpoint: Checkpoint, digests: Mapping[str, str]) -> str:
    """One hash for a set of tensors: their names, shapes, dtypes and contents, in the order of their names."""
    state = xxhash.xxh3_128()
    for name in sorted(digests):
        tensor = checkpoint.stored[name]
        state.update(f"{name}\0{list(tensor.shape)}\0{tensor.dtype}\0{digests[name]}\n".encode())
    return state.hexdigest()
