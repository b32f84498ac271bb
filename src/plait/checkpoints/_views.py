"""A checkpoint seen with other names and another layout: bytes in another order, none of them changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from plait.architectures import View
from plait.checkpoints._base import Checkpoint, LazyTensor

__all__ = ["JoinedTensor", "seen_as", "with_tensors"]


def with_tensors(checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor]) -> Checkpoint:
    """The same model with other tensors."""
    changed = copy.copy(checkpoint)
    changed.__dict__.pop("ties", None)
    changed.tensors = tensors
    return changed


def seen_as(checkpoint: Checkpoint, view: View, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """Return the checkpoint in the names of the model that the view is of.

    Args:
        checkpoint: the model.
        view: where its tensors stand.
        shapes: the other model's shapes.
    """
    tensors: dict[str, LazyTensor] = {}
    for name, ranges in view.tensors.items():
        first = checkpoint.tensors[ranges[0].name]
        if len(ranges) == 1 and ranges[0].count == first.numel:
            tensors[name] = first
            continue
        parts = [(checkpoint.tensors[r.name], r.start, r.count) for r in ranges]
        tensors[name] = JoinedTensor(name, shapes[name], parts)
    for name in view.unseen:  # under a name of its own, so that the plan has to account for it
        tensors[name if name not in tensors else f"{name} (unplaced)"] = checkpoint.tensors[name]
    return with_tensors(checkpoint, tensors)


class JoinedTensor(LazyTensor):
    """Flat ranges of other tensors, one after another."""

    def __init__(self, name: str, shape: tuple[int, ...], ranges: list[tuple[LazyTensor, int, int]]) -> None:
        dtype = ranges[0][0].dtype
        for tensor, _, _ in ranges:
            dtype = torch.promote_types(dtype, tensor.dtype)
        super().__init__(name, shape, dtype, ranges[0][0].source)
        self.ranges = ranges
        self.kept = ranges[0][0].kept
        for tensor, _, _ in ranges:
            self.kept = torch.promote_types(self.kept, tensor.kept)
        self.space = ranges[0][0].space  # type: ignore[misc]
        self.stable = all(tensor.stable for tensor, _, _ in ranges)  # type: ignore[misc]

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """What lies on disk."""
        found = (part for tensor, _, _ in self.ranges for part in tensor.parts)
        return tuple({id(part): part for part in found}.values())

    def memory(self, block: int) -> int:
        """What reading a range of the parts takes."""
        return max(tensor.memory(block) for tensor, _, _ in self.ranges)

    @property
    def readahead(self) -> int:
        """What the parts' files keep between two blocks."""
        return max(tensor.readahead for tensor, _, _ in self.ranges)

    def _cuts(self, start: int, stop: int) -> Iterator[tuple[LazyTensor, int, int, int]]:
        """Tensor, start and stop in it, and where that lies in [start, stop)."""
        offset = 0
        for tensor, first, count in self.ranges:
            low, high = max(start, offset), min(stop, offset + count)
            if low < high:
                yield tensor, first + low - offset, first + high - offset, low - start
            offset += count

    def read(self, start: int = 0, stop: int | None = None, scratch: Tensor | None = None) -> Tensor:
        """Read the ranges."""
        end = self.numel if stop is None else stop
        cuts = list(self._cuts(start, end))
        if len(cuts) == 1 and cuts[0][0].dtype == self.dtype:
            tensor, first, last, _ = cuts[0]
            return tensor.read(first, last, scratch)
        values = torch.empty(end - start, dtype=self.dtype)
        for tensor, first, last, place in cuts:
            values[place : place + last - first] = tensor.read(first, last)
        return values

    def prefetch(self, start: int, stop: int) -> None:
        """Read the parts ahead."""
        for tensor, first, last, _ in self._cuts(start, stop):
            tensor.prefetch(first, last)
