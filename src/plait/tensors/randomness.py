"""Seeded random numbers that do not depend on blocks, threads, shards or devices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SEGMENT", "Draws", "key_of"]

#: Elements drawn from one counter: blocks of any size read whole segments and cut what they need.
SEGMENT = 1 << 16


def key_of(seed: int, tensor: str, expert: str) -> bytes:
    """The key of one stream: 16 bytes."""
    return hashlib.blake2b(f"{seed}\0{tensor}\0{expert}".encode(), digest_size=16).digest()


def _segment(key: bytes, index: int) -> Float[Tensor, " n"]:
    """Draw one whole segment: Philox counters of a key of its own, 24 random bits a number."""
    bits = np.random.Philox(key=int.from_bytes(key, "little"), counter=[0, 0, 0, index])
    words = bits.random_raw(SEGMENT // 2).view(np.uint32)
    return torch.from_numpy((words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24))


@dataclass(frozen=True)
class Draws:
    """Uniform numbers for one tensor: a function of (seed, tensor, expert, flat index) alone.

    Attributes:
        seed: the recipe's seed.
        tensor: name of the tensor.
        replay: if given, called as `replay(tensor, expert)` for the numbers of the whole tensor instead: for
            repeating masks that another program has drawn.
    """

    seed: int
    tensor: str
    replay: Callable[[str, str], Tensor] | None = None

    def uniform(self, expert: str, offset: int, length: int) -> Float[Tensor, " length"]:
        """Return the numbers in [0, 1) for flat elements [offset, offset + length)."""
        if self.replay is not None:
            return self.replay(self.tensor, expert).reshape(-1)[offset : offset + length]
        key = key_of(self.seed, self.tensor, expert)
        first, last = offset // SEGMENT, -(-(offset + length) // SEGMENT)
        parts = [_segment(key, index) for index in range(first, last)]
        if not parts:
            return torch.empty(0)
        start = offset - first * SEGMENT
        return torch.cat(parts)[start : start + length] if len(parts) > 1 else parts[0][start : start + length]
