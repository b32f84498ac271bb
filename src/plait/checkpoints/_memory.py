"""Dictionaries of tensors in memory, seen as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from plait.checkpoints._base import LazyTensor
from plait.checkpoints._dtypes import SAFETENSORS
from plait.errors import CheckpointError, QuantizedCheckpointError

__all__ = ["MemoryTensor", "tensors_of"]

_KNOWN = frozenset(SAFETENSORS.values())


class MemoryTensor(LazyTensor):
    """A tensor that is already in memory, or mapped from a PyTorch file."""

    def __init__(self, name: str, tensor: Tensor, source: str) -> None:
        super().__init__(name, tuple(tensor.shape), tensor.dtype, source)
        self._tensor = tensor.detach()

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Return a view where the layout allows it."""
        del scratch
        return self._tensor.reshape(-1)[start : self.numel if stop is None else stop].cpu()


def tensors_of(state: Mapping[str, Tensor], source: str) -> dict[str, LazyTensor]:
    """Wrap a dictionary of tensors.

    Raises:
        QuantizedCheckpointError: for dtypes that mean nothing without scales.
    """
    found: dict[str, LazyTensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source}: {name!r} is a {type(tensor).__name__}, not a tensor.")
        if name == "__metadata__" or tensor.is_meta:
            raise CheckpointError(f"{source}: {name!r} is a name or a tensor without values that cannot be merged.")
        if "float8" in str(tensor.dtype) or tensor.is_quantized:
            raise QuantizedCheckpointError(
                f"tensor {name!r} in {source} is stored as {tensor.dtype}: its values mean nothing without their "
                "scales. Convert the model to bfloat16 with the library that quantised it."
            )
        if tensor.dtype not in _KNOWN or tensor.is_sparse:
            raise CheckpointError(
                f"tensor {name!r} in {source} has a layout or dtype ({tensor.dtype}) plait cannot merge."
            )
        found[name] = MemoryTensor(name, tensor, source)
    return found
