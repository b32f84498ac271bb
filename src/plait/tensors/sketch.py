"""What a few random projections tell about a matrix that is read once, in blocks of rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from plait.tensors.randomness import Draws
from plait.tensors.spectral import SVD, numerical_rank, svd

__all__ = ["WIDTH", "overlap", "sketch_basis", "sketch_directions"]

#: number of random directions; ranks below it are found exactly
WIDTH = 128


def sketch_directions(columns: int, seed: int = 0) -> Float[Tensor, "n k"]:
    """Seeded Gaussian directions Ω (n × min(n, 128)), the same for every matrix with n columns."""
    count = min(columns, WIDTH)
    draws = Draws(seed, f"sketch of {columns} columns")
    u = draws.uniform("radius", 0, columns * count).clamp(min=2.0**-24).double()
    v = draws.uniform("angle", 0, columns * count).double()
    normal = torch.sqrt(-2 * torch.log(u)) * torch.cos(2 * torch.pi * v)
    return normal.view(columns, count).float()


def sketch_basis(projected: Float[Tensor, "m k"]) -> tuple[SVD, int]:
    """Left singular vectors of D from Y = DΩ, and the numerical rank of Y: that of D where it is below k."""
    factors = svd(projected.double())
    rows, columns = projected.shape
    # Y was summed in float32: what lies below its rounding is no direction of D
    tolerance = torch.finfo(torch.float32).eps * max(rows, columns)
    values = factors.s
    rank = int((values > values[0] * tolerance).sum()) if values.numel() and float(values[0]) > 0 else 0
    return factors, min(rank, numerical_rank(values, rows, columns))


def overlap(a: Float[Tensor, "m k"], b: Float[Tensor, "m l"]) -> float:
    """‖UᵃᵀUᵇ‖²_F / min(k, l): 1 where one subspace contains the other, about max(k, l)/m for unrelated ones."""
    size = min(a.shape[1], b.shape[1])
    return float((a.mT @ b).square().sum()) / size if size else 0.0
