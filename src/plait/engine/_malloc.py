"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["return_large_blocks"]

_M_MMAP_THRESHOLD = -3
#: larger than any array of a method that sees blocks: those are better reused than returned
_LARGE = 4 << 20


def return_large_blocks() -> None:
    """Let freed arrays of more than 4 MiB go back to the system at once, where the C library is glibc.

    Left alone, glibc learns from the first large array that is freed to keep others up to 32 MiB for later, per thread
    and with holes: factorising 2048 × 8192 matrices on two threads then occupies 340 MiB that nobody uses. This holds
    for the rest of the process; MALLOC_MMAP_THRESHOLD_ in the environment has precedence.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
