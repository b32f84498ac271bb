"""How a plan is run, and who is told about it: nothing here changes a bit of the result."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from plait.engine._device import check_device, free_memory
from plait.errors import RecipeError

__all__ = ["Options", "Progress", "Silent", "default_threads"]

#: default elements per block: small enough for caches, large enough to hide Python …
_BLOCK = 1 << 18
#: … and elsewhere, where a copy takes its time to begin
_BLOCK_ELSEWHERE = 1 << 22
_THREADS_ELSEWHERE = 4


class Progress(Protocol):
    """What a caller may want to know while a plan runs."""

    def phase(self, name: str, total: int) -> None:
        """A phase begins; `total` bytes will be read in it."""

    def advance(self, count: int) -> None:
        """That many bytes are done; called from any thread."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Silent:
    """Tells nothing."""

    def phase(self, name: str, total: int) -> None:
        """Ignore."""

    def advance(self, count: int) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""


def default_threads(device: str = "cpu") -> int:
    """The cores this process may use; of them a few for another device, which more would only make wait."""
    if hasattr(os, "sched_getaffinity"):
        cores = max(1, len(os.sched_getaffinity(0)))
    else:
        cores = os.cpu_count() or 1
    return cores if device == "cpu" else min(cores, _THREADS_ELSEWHERE)


@dataclass(frozen=True)
class Options:
    """How a plan is run; none of it changes a bit of the result.

    Attributes:
        memory: bytes of tensors in flight, on the processor or on the device.
        threads: worker threads.
        device: where the arithmetic is done.
        block: elements per block of elementwise methods, a multiple of 65,536; by default 262,144 on the processor and
            sixteen times as many elsewhere.
        overwrite: replace an existing output.
        factors: a folder in which factorisations are kept for later runs.
        compile: whether elementwise methods run as compiled loops: `auto` for large models, `always`, `never`.
        spool: where shards of a remote output are made before they are uploaded; the system's temporary folder by
            default.
        replay: uniform numbers to use instead of drawn ones, see `plait.tensors.randomness.Draws`.
    """

    memory: int = 1 << 30
    threads: int = field(default_factory=default_threads)
    device: str = "cpu"
    block: int | None = None
    overwrite: bool = False
    factors: Path | None = None
    compile: Literal["auto", "always", "never"] = "auto"
    spool: Path | None = None
    replay: Callable[[str, str], Tensor] | None = None

    def check(self) -> None:
        """Raise RecipeError for options that cannot be used."""
        if self.threads < 1:
            raise RecipeError(f"threads is {self.threads}; it must be at least 1.")
        if self.compile not in ("auto", "always", "never"):
            raise RecipeError(f"compile is {self.compile!r}; use auto, always or never.")
        if self.block is not None and (self.block < 1 << 16 or self.block % (1 << 16)):
            raise RecipeError(f"block is {self.block}; it must be a positive multiple of 65536.")
        check_device(self.device)

    @property
    def preferred_block(self) -> int:
        """Elements per block, before the memory budget has its say."""
        if self.block is not None:
            return self.block
        return _BLOCK if self.device == "cpu" else _BLOCK_ELSEWHERE

    @property
    def budget(self) -> int:
        """Bytes that tensors may take: `memory`, or what is free on the device if that is less."""
        free = free_memory(self.device)
        return self.memory if free is None else min(self.memory, free)
