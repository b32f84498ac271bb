"""Sign election and the means over those who agree: the shared core of TIES, DELLA, Breadcrumbs and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["agreeing", "disjoint_merge", "elect", "largest_change", "variance", "weighted_sum"]


def weighted_sum(values: Sequence[Float[Tensor, "*n"]], weights: Sequence[float]) -> Float[Tensor, "*n"]:
    """Σ wᵢ xᵢ, added in the order given."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value, alpha=weight)
    return total


def elect(scaled: Sequence[Float[Tensor, "*n"]], vote: Literal["mass", "frequency"] = "mass") -> Float[Tensor, "*n"]:
    """The sign that most of the mass (Σ wᵢτᵢ) or most of the models (Σ sign wᵢτᵢ) stand for: −1, 0 or +1."""
    total = torch.zeros_like(scaled[0])
    for delta in scaled:
        total.add_(delta if vote == "mass" else delta.sign())
    return total.sign_()


def agreeing(delta: Float[Tensor, "*n"], sign: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1 where the entry has the elected sign, else 0; a zero never agrees."""
    return (delta * sign > 0).to(delta.dtype)


def disjoint_merge(
    scaled: Sequence[Float[Tensor, "*n"]],
    sign: Float[Tensor, "*n"],
    weights: Sequence[float],
    combine: Literal["mean", "sum", "max"] = "mean",
) -> Float[Tensor, "*n"]:
    """Combine the entries of the weighted deltas wᵢτᵢ that have the elected sign.

    mean: Σ wᵢτᵢ / Σ wᵢ over those who agree (0 where nobody does); sum: Σ wᵢτᵢ; max: sign · max |wᵢτᵢ|.
    """
    total = torch.zeros_like(scaled[0])
    share = torch.zeros_like(scaled[0])
    for delta, weight in zip(scaled, weights, strict=True):
        mask = agreeing(delta, sign)
        if combine == "max":
            torch.maximum(total, delta.abs() * mask, out=total)
            continue
        total.addcmul_(delta, mask)
        if combine == "mean":
            share.add_(mask, alpha=weight)
    if combine == "max":
        return total * sign
    if combine == "mean":
        return total / torch.where(share == 0, torch.ones_like(share), share)
    return total


def largest_change(values: Sequence[Float[Tensor, "*n"]]) -> Float[Tensor, "*n"]:
    """Per entry the value of largest magnitude; the later one where magnitudes are equal."""
    largest = values[0]
    for value in values[1:]:
        largest = torch.where(value.abs() >= largest.abs(), value, largest)
    return largest


def variance(values: Sequence[Float[Tensor, "*n"]]) -> Float[Tensor, "*n"]:
    """Population variance per entry over the experts.

    Measured from the first expert, so that it is exactly 0 where all are equal: the mean of three equal numbers may be
    another number.
    """
    shifts = [value - values[0] for value in values]
    mean = weighted_sum(shifts, [1.0] * len(shifts)) / len(shifts)
    total = torch.zeros_like(mean)
    for shift in shifts:
        total.add_((shift - mean).square_())
    return total / len(shifts)
