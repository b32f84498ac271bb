"""A model on disk or in memory, as tensors whose names, shapes and dtypes are known and whose bytes are read late."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from plait.architectures import tie_flag, tied_to
from plait.checkpoints._remote_path import AnyPath
from plait.errors import CheckpointError

__all__ = ["Checkpoint", "Component", "LazyTensor"]


class LazyTensor(ABC):
    """One tensor: header known, bytes read when asked.

    Attributes:
        name: name in the file.
        shape: its dimensions.
        dtype: how it is stored.
        source: the file (or "memory") it lies in, for messages.
        stable: whether what `read` returns without a scratch buffer stays as it is when another tensor is read.
        space: what its values are: a weight, or the change of one (a delta). The two never take each other's place.
        kept: the dtype that a result on this tensor should have, where the recipe names none.
    """

    stable: ClassVar[bool] = True
    space: ClassVar[str] = "weight"

    def __init__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, source: str) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.source = source
        self.kept = dtype
        self.numel = math.prod(shape)
        self.nbytes = self.numel * dtype.itemsize

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Return flat elements [start, stop) in the stored dtype.

        Args:
            start: first flat index, row-major.
            stop: end of the range; None for the end of the tensor.
            scratch: a uint8 buffer that may be filled and returned as a view, to spare an allocation.

        Raises:
            CheckpointError: if the file ends early.
        """

    def fill(self, start: int, stop: int, into: memoryview) -> None:
        """Put the bytes of flat elements [start, stop) into a buffer of just that size.

        Raises:
            CheckpointError: if the file ends early.
        """
        values = self.read(start, stop)
        if values.numel():
            into[:] = memoryview(values.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]

    def prefetch(self, start: int, stop: int) -> None:
        """Tell the system that these elements will be read soon."""
        del start, stop

    def follows(self, other: LazyTensor) -> bool:
        """Whether it begins in the same file, in the same dtype, where the other ends: `fill` may read both at once."""
        del other
        return False

    def memory(self, block: int) -> int:
        """Bytes held while the tensor is read in blocks of that many elements, beyond the block itself."""
        del block
        return 0

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """The tensors on disk, or in memory, that its values come from: itself, unless it is computed from others."""
        return (self,)

    @property
    def derived(self) -> bool:
        """Whether it is computed from other tensors."""
        parts = self.parts
        return len(parts) != 1 or parts[0] is not self

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """The factors (m, r) and (r, n) of a low-rank change; None for anything else."""
        return None

    @property
    def readahead(self) -> int:
        """Bytes that stay in memory between two blocks, because more is fetched than is asked for."""
        return 0

    def load(self) -> Tensor:
        """Return the whole tensor in its own shape."""
        return self.read().reshape(self.shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {list(self.shape)}, {self.dtype}, {self.source!r})"


@dataclass(frozen=True)
class Component:
    """One model of a folder of several: a pipeline's, or a module of sentence-transformers.

    Attributes:
        name: its folder, relative to the whole; its tensors are called `name/…`.
        stem: how its weight files are called.
        config: contents of its config.json.
        chosen: whether a recipe has to say that it is merged.
    """

    name: str
    stem: str = "model"
    config: dict[str, Any] | None = None
    chosen: bool = False


class Checkpoint:
    """A set of named lazy tensors with what lies beside them.

    Attributes:
        label: how messages call it: a path, a Hub id, or "memory".
        tensors: name on disk → tensor.
        config: contents of config.json, if there is one.
        folder: where its other files lie, if it is a folder: a path here or a remote one.
        hub_id: its id on the Hub, if it came from there.
        revision: the commit that was read, for a Hub model.
        files: small files that stand in the place of those of the same kind in the folder: a tokenizer made anew.
        stamp: what tells that its files changed between two runs: their sizes and tags or times.
        opened: the files here that were opened, as they were then.
        restamp: reads the stamp anew, for files that can change while they are open.
        adapter: contents of adapter_config.json, or what stands in the file in its place; None for a model.
        components: the models that a folder of several consists of, by the folder each lies in.
        stored: what its files hold, where the tensors are computed from that; the tensors themselves elsewhere.
        quantized: how its weights are quantised on disk, in words; empty if they are not.
    """

    def __init__(
        self,
        label: str,
        tensors: Mapping[str, LazyTensor],
        *,
        config: dict[str, Any] | None = None,
        folder: AnyPath | None = None,
        hub_id: str | None = None,
        revision: str | None = None,
        files: Mapping[str, bytes] | None = None,
        stamp: str = "",
        opened: Mapping[Path, os.stat_result] | None = None,
        restamp: Callable[[], str] | None = None,
        adapter: Mapping[str, Any] | None = None,
        components: Mapping[str, Component] | None = None,
        stored: Mapping[str, LazyTensor] | None = None,
        quantized: str = "",
    ) -> None:
        self.label = label
        self.tensors = tensors
        self.config = config
        self.folder = folder
        self.hub_id = hub_id
        self.revision = revision
        self.files = dict(files or {})
        self.stamp = stamp
        self.opened = dict(opened or {})
        self.restamp = restamp
        self.adapter = adapter
        self.components = dict(components or {})
        self.stored = tensors if stored is None else stored
        self.quantized = quantized

    @classmethod
    def open(cls, reference: str | Path | Mapping[str, Tensor], *, relative_to: Path | None = None) -> Checkpoint:
        """Open a folder, a file, a URL, a Hub id or a dictionary of tensors, reading headers only."""
        from plait.checkpoints._open import open_checkpoint

        return open_checkpoint(reference, relative_to=relative_to)

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was written to since it was opened: what was read may be half of each.

        A file that was removed or replaced is no such case: the one that was opened is read to its end.
        """
        for path, then in self.opened.items():
            try:
                now = path.stat()
            except OSError:
                continue
            if now.st_ino == then.st_ino and (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
                raise CheckpointError(
                    f"{path} was changed while it was being read; nothing of it is used. Run the same command again "
                    "when it is complete."
                )

    def __getitem__(self, name: str) -> LazyTensor:
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Any:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @cached_property
    def ties(self) -> dict[str, str]:
        """Tensors that the config ties to another one: alias → the tensor it is."""
        if self.config is None or not tie_flag(self.config):
            return {}
        # transformers does not save a tied output projection: it is missed only where the model has one
        listed = self.config.get("architectures")
        names = listed if isinstance(listed, list) else []
        headed = any("LM" in str(name) or "Generation" in str(name) for name in names)
        candidates = {*self.tensors, *(("lm_head.weight",) if headed else ())}
        found = {name: tied_to(name, self.tensors) for name in sorted(candidates)}
        return {name: source for name, source in found.items() if source is not None}

    def find(self, name: str) -> LazyTensor | None:
        """Return a tensor by name; a missing tied copy is the tensor it is tied to."""
        if name in self.ties:
            return self.tensors.get(self.ties[name])
        if name in self.tensors:
            return self.tensors[name]
        source = tied_to(name, self.tensors) if self.config is not None and tie_flag(self.config) else None
        return self.tensors.get(source) if source else None

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(t.numel for t in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def __repr__(self) -> str:
        return f"Checkpoint({self.label!r}, {len(self)} tensors, {self.parameters:,} parameters)"
