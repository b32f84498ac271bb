"""Products of weights that a change of basis leaves alone: what tells a locked model from a strange one.

An attention head computes x W_qᵀ W_k y and W_o W_v x; an MLP sums over its hidden units. Any invertible matrix between
W_v and W_o, between W_q and W_k (with rotary positions: those that commute with the rotations), any permutation of
heads or of hidden units and any scale that is taken back leaves the products as they are, while the matrices
themselves may be arbitrarily far from where they were. The products are compared on a few fixed random directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from plait.architectures import head_size, parts_of
from plait.checkpoints import Checkpoint

__all__ = ["compare_products"]

_DIRECTIONS = 32
_ROWS = 1 << 20  # elements read at a time


def compare_products(first: Checkpoint, other: Checkpoint, layers: Iterable[Sequence[str]]) -> dict[str, float]:
    """Relative distance of two models' products, for every layer and product whose matrices are known by name.

    Returns:
        "LAYER qk", "LAYER vo", "LAYER mlp" → ‖P − P₀‖/‖P₀‖ on 32 random directions.
    """
    found: dict[str, float] = {}
    for names in layers:
        parts = parts_of(names)
        for key, function in (("qk", _query_key), ("vo", _value_output), ("mlp", _mlp)):
            wanted = _PARTS[key]
            if not all(p in parts and parts[p] in other for p in wanted):
                continue
            chosen = [parts[p] for p in wanted]
            a, b = (function(model, chosen) for model in (first, other))
            if a is None or b is None or not float(a.norm()):
                continue
            prefix = _common(chosen)
            found[f"{prefix} {key}"] = float((b - a).norm() / a.norm())
    return found


_PARTS = {"qk": ("q", "k"), "vo": ("v", "o"), "mlp": ("up", "down")}


def _common(names: Sequence[str]) -> str:
    """The longest common run of whole name parts."""
    split = [name.split(".") for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _directions(width: int) -> Float[Tensor, "width d"]:
    return torch.randn(width, _DIRECTIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _apply(model: Checkpoint, name: str, right: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """W R, a few rows at a time."""
    tensor = model[name]
    rows, columns = tensor.shape
    step = max(1, _ROWS // columns)
    parts = [
        tensor.read(i * columns, min(i + step, rows) * columns).view(-1, columns).double() @ right
        for i in range(0, rows, step)
    ]
    return torch.cat(parts)


def _apply_transposed(model: Checkpoint, name: str, right: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
    """Wᵀ R, a few rows at a time."""
    tensor = model[name]
    rows, columns = tensor.shape
    step = max(1, _ROWS // columns)
    total = torch.zeros(columns, right.shape[1], dtype=torch.float64)
    for i in range(0, rows, step):
        stop = min(i + step, rows)
        total += tensor.read(i * columns, stop * columns).view(-1, columns).double().mT @ right[i:stop]
    return total


def _spread(model: Checkpoint, values: Float[Tensor, "m d"], rows: int) -> Tensor | None:
    """Repeat each key or value head for the query heads that share it; None where the heads are not known."""
    if values.shape[0] == rows:
        return values
    width = head_size(model.config)
    if width is None or values.shape[0] % width or rows % values.shape[0]:
        return None
    heads = values.view(-1, width, values.shape[1])
    return heads.repeat_interleave(rows // values.shape[0], dim=0).reshape(rows, -1)


def _query_key(model: Checkpoint, names: Sequence[str]) -> Tensor | None:
    q, k = names
    spread = _spread(model, _apply(model, k, _directions(model[k].shape[1])), model[q].shape[0])
    return None if spread is None else _apply_transposed(model, q, spread)


def _value_output(model: Checkpoint, names: Sequence[str]) -> Tensor | None:
    v, o = names
    spread = _spread(model, _apply(model, v, _directions(model[v].shape[1])), model[o].shape[1])
    return None if spread is None else _apply(model, o, spread)


def _mlp(model: Checkpoint, names: Sequence[str]) -> Tensor | None:
    up, down = names
    if model[up].shape[0] != model[down].shape[1]:
        return None
    return _apply(model, down, _apply(model, up, _directions(model[up].shape[1])))
