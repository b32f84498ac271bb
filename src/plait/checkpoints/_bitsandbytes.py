"""The formats of bitsandbytes: eight bits with a scale for each row, four bits with a table and scales of blocks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from plait.checkpoints._base import LazyTensor
from plait.checkpoints._scaled import Dequantized
from plait.errors import CheckpointError, QuantizedCheckpointError

__all__ = ["read_bitsandbytes"]

_STATE = ".quant_state.bitsandbytes__"


def read_bitsandbytes(
    tensors: Mapping[str, LazyTensor], kept: torch.dtype, place: str
) -> tuple[dict[str, LazyTensor], str]:
    """Return the weights by name, and how they were stored.

    Raises:
        QuantizedCheckpointError: for a layout of the eight-bit codes that only GPUs have.
        CheckpointError: for scales that do not fit.
    """
    found: dict[str, LazyTensor] = {}
    used: set[str] = set()
    kinds: set[str] = set()
    for name, tensor in tensors.items():
        states = [key for key in tensors if key.startswith(name + _STATE)] if name.endswith(".weight") else []
        if states:
            parts = {key[len(name) + 1 :]: t for key, t in tensors.items() if key.startswith(f"{name}.")}
            state = _state(tensors[states[0]])
            found[name] = _FourBits(name, tensor, parts, state, place)
            used |= {name, *(f"{name}.{key}" for key in parts)}
            kinds.add(str(state["quant_type"]) + (" with nested scales" if "nested_absmax" in parts else ""))
        owner = name.removesuffix("weight") + "SCB"
        if name.endswith(".weight") and owner in tensors:
            layout = tensors.get(name.removesuffix("weight") + "weight_format")
            if layout is not None and int(layout.load().reshape(-1)[0]) != 0:
                raise QuantizedCheckpointError(
                    f"{place}: the eight-bit codes of {name!r} are in the order of a GPU's tiles; save the model with "
                    "a newer bitsandbytes, which keeps rows."
                )
            found[name] = _EightBits(name, tensor, tensors[owner], kept, place)
            used |= {name, owner, *((layout.name,) if layout is not None else ())}
            kinds.add("int8")
    ordered = {n: found.get(n, t) for n, t in tensors.items() if n in found or n not in used}
    return ordered, f"bitsandbytes {' and '.join(sorted(kinds))}"


def _state(tensor: LazyTensor) -> dict[str, Any]:
    """The numbers and words beside the scales, as JSON in bytes."""
    try:
        state = json.loads(bytes(tensor.load().to(torch.uint8).tolist()).decode())
        return {"quant_type": str(state["quant_type"]), **state, "blocksize": int(state["blocksize"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{tensor.name!r} in {tensor.source} cannot be read: {error}.") from None


class _EightBits(Dequantized):
    """code · s/127, s the largest size in its row."""

    def __init__(self, name: str, codes: LazyTensor, sizes: LazyTensor, kept: torch.dtype, place: str) -> None:
        if codes.dtype != torch.int8 or len(codes.shape) != 2 or sizes.numel != codes.shape[0]:
            raise CheckpointError(
                f"{place}: {name!r} is {list(codes.shape)} of {codes.dtype} with {sizes.numel} scales; eight-bit codes "
                "of bitsandbytes have one for each row."
            )
        super().__init__(name, codes.shape, (codes, sizes), kept)
        self.codes, self.sizes = codes, sizes

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Scale the range."""
        del scratch
        end = self.numel if stop is None else stop
        rows = torch.arange(start, end) // self.shape[1]
        sizes = self.sizes.load().reshape(-1).to(torch.float32) * (1 / 127)
        return self.codes.read(start, end).to(torch.float32).mul_(sizes[rows])

    def prefetch(self, start: int, stop: int) -> None:
        """Read the codes ahead."""
        self.codes.prefetch(start, stop)


class _FourBits(Dequantized):
    """table[code] · scale of its block; the scales may be stored as codes themselves, with an offset."""

    def __init__(
        self, name: str, codes: LazyTensor, parts: Mapping[str, LazyTensor], state: Mapping[str, Any], place: str
    ) -> None:
        shape = tuple(int(size) for size in state["shape"])
        needed = {"absmax", "quant_map"} | (
            {"nested_absmax", "nested_quant_map"} if "nested_absmax" in parts else set()
        )
        size = int(state["blocksize"])
        count = -(-prod(shape) // size)
        if not needed <= set(parts) or codes.numel != -(-prod(shape) // 2) or parts["absmax"].numel != count:
            raise CheckpointError(
                f"{place}: {name!r} of shape {list(shape)} in blocks of {size} does not fit its {codes.numel} bytes "
                f"and its scales ({', '.join(sorted(parts))})."
            )
        kept = getattr(torch, str(state.get("dtype", "float16")), torch.float16)
        super().__init__(name, shape, (codes, *parts.values()), kept)
        self.codes, self.scales, self.table, self.size = codes, parts["absmax"], parts["quant_map"], size
        self.nested = (parts["nested_absmax"], parts["nested_quant_map"]) if "nested_absmax" in parts else None
        self.nested_size = int(state.get("nested_blocksize", 256))
        self.offset = float(state.get("nested_offset", 0.0))

    def _scales(self, first: int, last: int) -> Tensor:
        """Scales of blocks [first, last)."""
        scales = self.scales.read(first, last)
        if self.nested is None:
            return scales.to(torch.float32)
        sizes, table = (part.load().reshape(-1).to(torch.float32) for part in self.nested)
        blocks = torch.arange(first, last) // self.nested_size
        return table[scales.long()] * sizes[blocks] + self.offset

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Look up and scale the range: the first of two numbers is in the upper half of a byte."""
        del scratch
        end = self.numel if stop is None else stop
        if end <= start:
            return torch.empty(0)
        codes = self.codes.read(start // 2, -(-end // 2)).view(torch.uint8)
        halves = torch.stack((codes >> 4, codes & 15), dim=1).view(-1)[start % 2 :][: end - start]
        first = start // self.size
        scales = self._scales(first, -(-end // self.size))
        table = self.table.load().reshape(-1).to(torch.float32)
        return table[halves.long()].mul_(scales[torch.arange(start, end) // self.size - first])

    def prefetch(self, start: int, stop: int) -> None:
        """Read the codes ahead."""
        self.codes.prefetch(start // 2, -(-stop // 2))
