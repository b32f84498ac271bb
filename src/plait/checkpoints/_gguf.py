"""GGUF files through the `gguf` package: names by its own tables, numbers by its own code, rows in the order they had.

Only families are read whose conversion is nothing but a renaming, and for Llama a permutation of the rows of queries
and keys; others change values (norms plus one, merged or split weights) and are refused by name.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.checkpoints._base import LazyTensor
from plait.checkpoints._scaled import Dequantized
from plait.errors import CheckpointError, MissingExtraError, QuantizedCheckpointError, shorten

__all__ = ["read_gguf"]

#: families of GGUF → whether their queries and keys were permuted
_FAMILIES = {"llama": True, "qwen2": False, "qwen3": False}
_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
_OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
_INSIDE = (
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{part}" for part in ("gate_proj", "up_proj", "down_proj")),
)
#: what loaders compute from the config
_COMPUTED = ("rope_freqs.weight",)


def read_gguf(path: Path) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor], str]:
    """Open a file.

    Returns:
        The weights under the names of Hugging Face, what is stored under GGUF's names, and the format in words.

    Raises:
        MissingExtraError: without the package.
        CheckpointError: for a damaged file.
        QuantizedCheckpointError: for a family or a type of numbers that is not read.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError(f"{path} needs the package gguf: pip install 'plait[gguf]'") from None
    try:
        reader: Any = gguf.GGUFReader(path)
        family = str(_field(reader, "general.architecture"))
        layers = int(_field(reader, f"{family}.block_count") or 0)
        heads = int(_field(reader, f"{family}.attention.head_count") or 0)
        pairs = int(_field(reader, f"{family}.attention.head_count_kv") or heads)
        kind = _field(reader, "general.file_type")
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be read as GGUF ({error}); download it again.") from None
    if family not in _FAMILIES:
        raise QuantizedCheckpointError(
            f"{path} is a GGUF file of the family {family!r}, whose conversion plait does not know how to undo (it "
            f"reads {', '.join(_FAMILIES)}); use the original safetensors model."
        )
    names = _names(gguf, family, layers)
    kept = {0: torch.float32, 1: torch.float16}.get(-1 if kind is None else int(kind), torch.bfloat16)
    tensors: dict[str, LazyTensor] = {}
    stored: dict[str, LazyTensor] = {}
    types: set[str] = set()
    strange: list[str] = []
    for entry in reader.tensors:
        if entry.name in _COMPUTED:
            continue
        module, _, parameter = entry.name.rpartition(".")
        known, numbers = names.get(module), entry.tensor_type.name
        if known is None or numbers not in _TYPES:
            strange.append(f"{entry.name} ({numbers})")
            continue
        name = f"{known}.{parameter}"
        rows = {"q_proj": heads, "k_proj": pairs}.get(known.rpartition(".")[2], 0) if _FAMILIES[family] else 0
        shape = tuple(int(size) for size in reversed(entry.shape.tolist()))
        if rows and shape[0] % (2 * rows):
            raise CheckpointError(f"{path}: {entry.name} of shape {list(shape)} has no {rows} heads.")
        raw = _Raw(entry, str(path))
        stored[entry.name] = raw
        tensors[name] = _GgufTensor(name, shape, raw, entry, rows, kept)
        types.add(numbers)
    if strange:
        raise QuantizedCheckpointError(
            f"{path} holds tensors that plait does not read from GGUF:\n{shorten(strange)}\nIt reads the types "
            f"{', '.join(_TYPES)} of dense models; use the original safetensors model."
        )
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors.")
    return tensors, stored, f"GGUF ({', '.join(sorted(types))})"


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _names(gguf: Any, family: str, layers: int) -> dict[str, str]:
    """GGUF's name of a module → Hugging Face's, by the package's own table."""
    kinds = {word: kind for kind, word in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[family], layers)
    modules = [*_OUTSIDE, *(f"model.layers.{i}.{part}" for i in range(layers) for part in _INSIDE)]
    found = {table.get_name(module): module for module in modules}
    found.pop(None, None)
    return found


class _Raw(LazyTensor):
    """The bytes of a tensor as they lie in the file."""

    def __init__(self, entry: Any, source: str) -> None:
        super().__init__(entry.name, (int(entry.n_bytes),), torch.uint8, source)
        self._data = entry.data.reshape(-1).view("uint8")
        if self._data.size != self.numel:
            raise CheckpointError(f"{source}: {entry.name} is cut short; download the file again.")

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Copy a range out of the mapped file."""
        del scratch
        return torch.from_numpy(self._data[start : self.numel if stop is None else stop].copy())


class _GgufTensor(Dequantized):
    """A tensor's numbers, by the package's own code, with the rows of queries and keys put back."""

    def __init__(self, name: str, shape: tuple[int, ...], raw: _Raw, entry: Any, heads: int, kept: torch.dtype) -> None:
        super().__init__(name, shape, (raw,), kept)
        self._data, self._type, self._heads = entry.data, entry.tensor_type, heads

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Dequantise the rows that the range lies in; of permuted tensors, the heads."""
        import numpy as np
        from gguf import dequantize

        del scratch
        end = self.numel if stop is None else stop
        if end <= start:
            return torch.empty(0)
        width = max(1, prod(self.shape[1:])) if len(self.shape) > 1 else 1
        unit = self.shape[0] // self._heads if self._heads else 1  # rows that are read together
        if len(self.shape) == 1:
            first, last = 0, self.numel
            values = dequantize(np.ascontiguousarray(self._data), self._type)
        else:
            first = start // (width * unit) * unit
            last = -(-end // (width * unit)) * unit
            values = dequantize(np.ascontiguousarray(self._data.reshape(self.shape[0], -1)[first:last]), self._type)
        rows = torch.from_numpy(np.array(values, dtype=np.float32)).reshape(last - first, -1)
        if self._heads:
            rows = rows.view(-1, unit // 2, 2, rows.shape[1]).transpose(1, 2).reshape(last - first, -1)
        return rows.reshape(-1)[start - first * width : end - first * width].clone()
