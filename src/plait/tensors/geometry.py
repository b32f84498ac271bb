"""Angles between tensors seen as vectors: Gram matrices, and what lies in the span of their columns.

Whatever a geometric method does with whole vectors x₁…x_N, it ends at a point Σ cᵢxᵢ of their span, and every inner
product on the way there follows from the Gram matrix ⟨xᵢ, xⱼ⟩. One survey of N(N+1)/2 exact sums therefore replaces
holding whole tensors; the coefficients are found in float64 on N×N numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from plait.tensors.sums import Each, dot

__all__ = ["cosines", "gram", "gram_matrix", "gram_rows", "norms", "slerp_shares"]


def gram(values: Sequence[Float[Tensor, "..."]]) -> Each:
    """⟨xᵢ, xⱼ⟩ for i ≤ j over all elements, as exact sums that add up over blocks."""
    return Each(tuple(dot(a, b) for i, a in enumerate(values) for b in values[i:]))


def gram_matrix(total: Each) -> Float[Tensor, "n n"]:
    """The symmetric matrix whose upper triangle `gram` has summed up."""
    count = (math.isqrt(8 * len(total.items) + 1) - 1) // 2
    matrix = torch.zeros(count, count, dtype=torch.float64)
    rows, columns = torch.triu_indices(count, count)
    matrix[rows, columns] = torch.tensor([float(item) for item in total.items], dtype=torch.float64)
    return matrix + matrix.triu(1).mT


def gram_rows(values: Sequence[Float[Tensor, "rows n"]]) -> Float[Tensor, "rows count count"]:
    """The Gram matrix of every row by itself, in float64."""
    first, count = values[0], len(values)
    matrix = torch.zeros(first.shape[0], count, count, dtype=torch.float64, device=first.device)
    for i in range(count):
        wide = values[i].double()
        for j in range(i, count):
            matrix[:, i, j] = matrix[:, j, i] = torch.linalg.vecdot(wide, values[j].double())
    return matrix


def norms(matrix: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n"]:
    """‖xᵢ‖ from a Gram matrix."""
    return matrix.diagonal(dim1=-2, dim2=-1).sqrt()


def cosines(matrix: Float[Tensor, "*b n n"], floor: float = 0.0) -> Float[Tensor, "*b n n"]:
    """Cos ∠(xᵢ, xⱼ) in [−1, 1] from a Gram matrix.

    A product of norms below `floor` counts as `floor`; a zero vector is orthogonal to everything.
    """
    length = norms(matrix)
    product = (length[..., :, None] * length[..., None, :]).clamp(min=floor)
    return torch.where(product > 0, matrix / product, torch.zeros_like(matrix)).clamp(-1.0, 1.0)


def slerp_shares(cosine: Float[Tensor, "*b"], t: float, colinear: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Coefficients of a and b on the great circle between them: sin((1−t)ω)/sin ω and sin(tω)/sin ω.

    Where |sin ω| < `colinear` they are 1 − t and t: the cosine's own rounding leaves ω uncertain by 2e-8 there, which
    is nothing between parallel vectors and everything between opposite ones.
    """
    omega = torch.acos(cosine.double())
    sine = omega.sin()
    flat = sine.abs() < colinear
    safe = torch.where(flat, torch.ones_like(sine), sine)
    left = torch.where(flat, 1.0 - t, ((1.0 - t) * omega).sin() / safe)
    right = torch.where(flat, t, (t * omega).sin() / safe)
    return left, right
