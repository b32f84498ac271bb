"""When Python looks for cycles of garbage: neither while libraries and plans are loaded nor at the very end.

Torch alone makes half a million objects that live as long as the process. To look through them again and again while
they are made, and once more when the interpreter ends, takes half a second of every command.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["farewell", "loading"]


@contextmanager
def loading() -> Iterator[None]:
    """Load libraries, or make a plan, without collecting; what is there afterwards is never looked through again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def farewell() -> None:
    """Collect no more: the process ends."""
    gc.disable()
    gc.freeze()
