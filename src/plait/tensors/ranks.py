"""Where each entry of a row stands among the row's magnitudes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from plait.tensors.summaries import rowwise

__all__ = ["relative_magnitudes", "relative_ranks", "row_places"]

_TINY = 1e-7


def relative_ranks(values: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """Rank of |x| in its row, 0 for the smallest to 1 for the largest; ½ in a row of one; equal ones by position."""
    n = values.shape[-1]
    if n == 1:
        return torch.full_like(values, 0.5)
    return row_places(values).div_(n - 1)


@rowwise("row_places")
def row_places(values: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """How many entries of its row stand before each in ascending order of magnitude, equal ones by position."""
    order = values.abs().argsort(dim=-1, stable=True)
    steps = torch.arange(values.shape[-1], dtype=values.dtype, device=values.device).expand_as(values)
    return torch.empty_like(values).scatter_(-1, order, steps)


def relative_magnitudes(values: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """Place of |x| between its row's smallest and largest magnitude, 0 to 1; ½ where they are one."""
    size = values.abs()
    low, high = torch.aminmax(size, dim=-1, keepdim=True)
    return torch.where(high > low, (size - low) / (high - low + _TINY), 0.5)
