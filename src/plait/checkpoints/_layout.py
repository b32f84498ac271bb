"""Where every output tensor will lie: shards, headers and offsets, known before the first byte is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch

from plait.checkpoints._dtypes import safetensors_name

__all__ = ["Entry", "Layout", "Shard"]


@dataclass(frozen=True)
class Entry:
    """One tensor of the output."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @cached_property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @cached_property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One output file: its tensors in order, and its header.

    Attributes:
        name: the file, relative to the output.
        entries: its tensors.
        folder: the component whose file it is; empty for a model that is none. Names in the file are without it.
        stem: how the files of this model are called.
    """

    name: str
    entries: tuple[Entry, ...]
    folder: str = ""
    stem: str = "model"

    def key(self, entry: Entry) -> str:
        """What a tensor is called in the file."""
        return entry.name.removeprefix(f"{self.folder}/") if self.folder else entry.name

    @cached_property
    def header(self) -> bytes:
        """Length prefix and JSON, padded so that the data starts aligned."""
        fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for entry in self.entries:
            span = [offset, offset + entry.nbytes]
            fields[self.key(entry)] = {
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
    def plan(cls, entries: Sequence[Entry], shard_size: int, stems: Mapping[str, str] | None = None) -> Layout:
        """Fill shards of at most `shard_size` bytes (a larger tensor gets a shard of its own) in the given order.

        Args:
            entries: all tensors.
            shard_size: bytes.
            stems: for a folder of several models, each one's folder and how its files are called; tensors whose names
                begin with one of the folders go there.
        """
        models: dict[str, list[Entry]] = {}
        for entry in entries:
            folder = next((f for f in stems or {} if entry.name.startswith(f"{f}/")), "")
            models.setdefault(folder, []).append(entry)
        shards: list[Shard] = []
        for folder, members in models.items():
            shards += _fill(members, shard_size, folder, (stems or {}).get(folder, "model"))
        return cls(tuple(shards))

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

    def indices(self) -> dict[str, str]:
        """Contents of the index files, by name; none for a model in a single file."""
        models: dict[tuple[str, str], list[Shard]] = {}
        for shard in self.shards:
            models.setdefault((shard.folder, shard.stem), []).append(shard)
        return {
            f"{folder}/{stem}.safetensors.index.json".lstrip("/"): _index(shards)
            for (folder, stem), shards in models.items()
            if len(shards) > 1
        }


def _fill(entries: Sequence[Entry], shard_size: int, folder: str, stem: str) -> list[Shard]:
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
        [f"{stem}.safetensors"]
        if count == 1
        else [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    # Wider dtypes first within a file keep every tensor aligned to its element size.
    ordered = [tuple(sorted(group, key=lambda e: -e.dtype.itemsize)) for group in groups]
    prefix = f"{folder}/" if folder else ""
    return [Shard(prefix + name, group, folder, stem) for name, group in zip(names, ordered, strict=True)]


def _index(shards: Sequence[Shard]) -> str:
    entries = [entry for shard in shards for entry in shard.entries]
    metadata = {
        "total_parameters": sum(e.numel for e in entries),
        "total_size": sum(e.nbytes for e in entries),
    }
    weight_map = {shard.key(e): shard.name.rpartition("/")[2] for shard in shards for e in shard.entries}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, ensure_ascii=False) + "\n"
