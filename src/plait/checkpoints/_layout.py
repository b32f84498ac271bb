"""Where every output tensor will lie: shards, headers and offsets, known before the first byte is computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from plait.checkpoints._dtypes import safetensors_name

__all__ = ["Entry", "Layout", "Shard"]

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """One tensor of the output."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One output file: its tensors in order, and its header."""

    name: str
    entries: tuple[Entry, ...]

    @cached_property
    def header(self) -> bytes:
        """Length prefix and JSON, padded so that the data starts aligned."""
        fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for entry in self.entries:
            span = [offset, offset + entry.nbytes]
            fields[entry.name] = {
                "dtype": safetensors_name(entry.dtype),
                "shape": list(entry.shape),
                "data_offsets": span,
            }
            offset += entry.nbytes
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def size(self) -> int:
        """Size of the whole file."""
        return len(self.header) + sum(entry.nbytes for entry in self.entries)


@dataclass(frozen=True)
class Layout:
    """All shards of a model."""

    shards: tuple[Shard, ...]

    @classmethod
    def plan(cls, entries: Sequence[Entry], shard_size: int) -> Layout:
        """Fill shards of at most `shard_size` bytes (a larger tensor gets a shard of its own) in the given order."""
        groups: list[list[Entry]] = [[]]
        used = 0
        for entry in entries:
            if groups[-1] and used + entry.nbytes > shard_size:
                groups.append([])
                used = 0
            groups[-1].append(entry)
            used += entry.nbytes
        count = len(groups)
        names = (
            ["model.safetensors"]
            if count == 1
            else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        )
        # Wider dtypes first within a file keep every tensor aligned to its element size.
        ordered = [tuple(sorted(group, key=lambda e: -e.dtype.itemsize)) for group in groups]
        return cls(tuple(Shard(name, group) for name, group in zip(names, ordered, strict=True)))

    @cached_property
    def places(self) -> dict[str, tuple[Shard, int]]:
        """Tensor name → its shard and absolute byte offset."""
        found: dict[str, tuple[Shard, int]] = {}
        for shard in self.shards:
            offset = len(shard.header)
            for entry in shard.entries:
                found[entry.name] = (shard, offset)
                offset += entry.nbytes
        return found

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All tensors in file order."""
        return tuple(entry for shard in self.shards for entry in shard.entries)

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(shard.size for shard in self.shards)

    def index(self) -> str | None:
        """Contents of the index file, or None for a single file."""
        if len(self.shards) == 1:
            return None
        entries = self.entries
        metadata = {
            "total_parameters": sum(e.numel for e in entries),
            "total_size": sum(e.nbytes for e in entries),
        }
        weight_map = {e.name: shard.name for shard in self.shards for e in shard.entries}
        return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, ensure_ascii=False) + "\n"
