"""Sparse adapters: whole rows or columns of weights, as S2FT trains them; fused and taken out again exactly.

Yang et al., "S²FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity", NeurIPS 2024, arXiv
2412.06289. A file holds, for each weight, the axis, the indices of its changed rows or columns in the base's order, and
what is added to them. Subtracting again is not exact in 16 bits; the touched values are kept instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from plait.checkpoints import Checkpoint, Entry, Layout, Shard, local_path
from plait.engine import GrowingOutput
from plait.errors import AdapterError, IncompatibleModelsError

__all__ = ["SparseChange", "extract_sparse", "fuse", "load_sparse", "merge_sparse", "save_sparse", "unfuse"]

WEIGHTS, FACTS = "sparse_adapter.safetensors", "sparse_adapter.json"
Axis = Literal["row", "column"]


@dataclass(frozen=True, eq=False)
class SparseChange:
    """What is added to some rows or columns of one weight.

    Attributes:
        axis: whether whole rows (outputs) or whole columns (inputs) change.
        indices: which, ascending, in the base's order.
        values: what is added to them: (k, inputs) or (outputs, k).
    """

    axis: Axis
    indices: Tensor
    values: Tensor

    @property
    def dim(self) -> int:
        """The dimension that `indices` count along."""
        return 0 if self.axis == "row" else 1


def extract_sparse(
    base: Mapping[str, Tensor], model: Mapping[str, Tensor], most: float = 0.5
) -> dict[str, SparseChange]:
    """Find the rows or columns by which a model differs from its base, whichever are fewer numbers.

    Args:
        base: the base's tensors.
        model: the fine-tune's.
        most: largest share of a weight that may differ.

    Raises:
        AdapterError: for a weight that differs in more than that, or that is no matrix.
    """
    found: dict[str, SparseChange] = {}
    for name, origin in base.items():
        change = model[name].float() - origin.float()
        moved = change != 0
        if not bool(moved.any()):
            continue
        if change.ndim != 2:
            raise AdapterError(f"{name} differs, but is no matrix of rows and columns.")
        rows, columns = moved.any(dim=1).nonzero().view(-1), moved.any(dim=0).nonzero().view(-1)
        by_row = rows.numel() / change.shape[0] <= columns.numel() / change.shape[1]
        share = min(rows.numel() / change.shape[0], columns.numel() / change.shape[1])
        if share > most:
            raise AdapterError(
                f"{name} differs in {share:.0%} of its rows and columns: it is no sparse adapter's weight."
            )
        if by_row:
            found[name] = SparseChange("row", rows, change[rows])
        else:
            found[name] = SparseChange("column", columns, change[:, columns].contiguous())
    return found


def fuse(weights: Mapping[str, Tensor], adapter: Mapping[str, SparseChange]) -> dict[str, Tensor]:
    """Add an adapter to weights in place; return the touched values as they were, for `unfuse`.

    Raises:
        IncompatibleModelsError: for a weight that is missing or too small; nothing is changed then.
    """
    for name, change in adapter.items():
        weight = weights.get(name)
        wanted = list(change.values.shape)
        if weight is None or weight.ndim != 2 or weight.shape[1 - change.dim] != wanted[1 - change.dim]:
            raise IncompatibleModelsError(f"the sparse adapter changes {name}, which the model lacks in that shape.")
        if change.indices.numel() and int(change.indices.max()) >= weight.shape[change.dim]:
            raise IncompatibleModelsError(f"the sparse adapter changes {change.axis}s of {name} that are not there.")
    before: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, change in adapter.items():
            weight = weights[name]
            old = weight.index_select(change.dim, change.indices)
            before[name] = old.clone()
            weight.index_copy_(change.dim, change.indices, (old.float() + change.values.float()).to(weight.dtype))
    return before


def unfuse(weights: Mapping[str, Tensor], adapter: Mapping[str, SparseChange], before: Mapping[str, Tensor]) -> None:
    """Put back what `fuse` has returned: the weights are bit for bit what they were."""
    with torch.no_grad():
        for name, change in adapter.items():
            weights[name].index_copy_(change.dim, change.indices, before[name])


def merge_sparse(
    adapters: Sequence[Mapping[str, SparseChange]], weights: Sequence[float] | None = None
) -> dict[str, SparseChange]:
    """Add sparse adapters up: their union where they touch different rows, the weighted sum where they touch the same.

    Raises:
        AdapterError: if one changes rows of a weight and another its columns.
    """
    shares = list(weights) if weights is not None else [1.0] * len(adapters)
    found: dict[str, SparseChange] = {}
    for name in dict.fromkeys(name for adapter in adapters for name in adapter):
        parts = [(adapter[name], share) for adapter, share in zip(adapters, shares, strict=True) if name in adapter]
        axes = {part.axis for part, _ in parts}
        if len(axes) > 1:
            raise AdapterError(f"one sparse adapter changes rows of {name}, another its columns: fuse them one by one.")
        dim = parts[0][0].dim
        indices = torch.cat([part.indices for part, _ in parts]).unique()
        shape = list(parts[0][0].values.shape)
        shape[dim] = indices.numel()
        total = torch.zeros(shape)
        for part, share in parts:
            places = torch.searchsorted(indices, part.indices)
            total.index_add_(dim, places, part.values.float() * share)
        found[name] = SparseChange(parts[0][0].axis, indices, total)
    return found


def save_sparse(adapter: Mapping[str, SparseChange], out: str | Path, *, overwrite: bool = False) -> None:
    """Write a sparse adapter as a folder, complete or not at all."""
    tensors = {f"{name}.{part}": getattr(c, part).contiguous() for name, c in adapter.items() for part in _PARTS}
    entries = tuple(Entry(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items())
    facts = {"schema": 1, "type": "sparse rows and columns", "axes": {name: c.axis for name, c in adapter.items()}}
    output = GrowingOutput(local_path(str(out)), Layout((Shard(WEIGHTS, entries),)), "", overwrite)
    try:
        for name, tensor in tensors.items():
            output.write(name, 0, tensor.reshape(-1))
        output.finish({FACTS: (json.dumps(facts, indent=1) + "\n").encode()})
    except BaseException:
        output.abandon(keep=False)
        raise


_PARTS = ("indices", "values")


def load_sparse(folder: str | Path) -> dict[str, SparseChange]:
    """Read a sparse adapter.

    Raises:
        AdapterError: if the folder holds none, or one that contradicts itself.
    """
    home = Path(folder)
    try:
        axes: dict[str, Any] = json.loads((home / FACTS).read_text(encoding="utf-8"))["axes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{home} holds no sparse adapter ({error}).") from None
    file = Checkpoint.open(home / WEIGHTS)
    found: dict[str, SparseChange] = {}
    for name, axis in axes.items():
        parts = [file.tensors.get(f"{name}.{part}") for part in _PARTS]
        if axis not in ("row", "column") or any(part is None for part in parts):
            raise AdapterError(f"{home} says nothing usable about {name}.")
        indices, values = (part.load() for part in parts if part is not None)
        change = SparseChange(axis, indices, values)
        sorted_once = indices.dtype == torch.int64 and bool((indices[1:] > indices[:-1]).all())
        if values.ndim != 2 or values.shape[change.dim] != indices.numel() or not sorted_once:
            raise AdapterError(f"{home}: indices and values of {name} do not fit each other.")
        found[name] = change
    return found
