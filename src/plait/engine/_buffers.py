"""Memory of one thread that is used again and again: fresh memory costs more than the arithmetic."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Buffer", "Held", "Scratch"]


class Buffer:
    """Bytes at a fixed address."""

    def __init__(self, size: int) -> None:
        self.array = np.empty(max(size, 1), np.uint8)
        self.view = memoryview(self.array)  # type: ignore[arg-type]
        self.address = int(self.array.ctypes.data)


class Held:
    """The bytes of a job's inputs, kept from its survey to its merge; each is filled from its beginning on.

    Attributes:
        name: of the tensor.
        starts: where each input begins.
        filled: bytes of each input that are there.
    """

    def __init__(self, name: str, sizes: Sequence[int]) -> None:
        self.name = name
        self.starts: list[int] = []
        at = 0
        for size in sizes:
            self.starts.append(at)
            at += -(-size // 64) * 64
        self.filled = [0] * len(sizes)


class Scratch(threading.local):
    """Buffers of one thread, reused from block to block."""

    def __init__(self) -> None:
        self.buffers: dict[Any, Tensor] = {}
        self.raw: dict[int | str, Buffer] = {}
        self.arena: Buffer | None = None
        self.held: Held | None = None
        self.noting = True  # whether what is read goes into the inputs' hashes

    def take(self, key: Any, numel: int, dtype: torch.dtype) -> Tensor:
        """Return a buffer of at least that size, cut to it."""
        held = self.buffers.get((key, dtype))
        if held is None or held.numel() < numel or held.numel() > 4 * max(numel, 1 << 16):
            held = self.buffers[(key, dtype)] = torch.empty(max(numel, 1), dtype=dtype)
        return held[:numel]

    def buffer(self, slot: int | str, size: int) -> Buffer:
        """Return a buffer of at least that many bytes."""
        held = self.raw.get(slot)
        if held is None or len(held.view) < size or len(held.view) > 4 * max(size, 1 << 18):
            held = self.raw[slot] = Buffer(size)
        return held
