"""Factorisations and what merging builds from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SVD", "numerical_rank", "svd"]


class SVD(NamedTuple):
    """A = U diag(s) Vh with r = min(m, n) values in descending order."""

    u: Float[Tensor, "m r"]
    s: Float[Tensor, "r"]  # noqa: F821
    vh: Float[Tensor, "r n"]

    def top(self, k: int) -> SVD:
        """Keep the k largest triplets."""
        return SVD(self.u[:, :k], self.s[:k], self.vh[:k])

    @property
    def rank(self) -> int:
        """Numerical rank."""
        return numerical_rank(self.s, self.u.shape[0], self.vh.shape[1])


def svd(matrix: Float[Tensor, "m n"]) -> SVD:
    """Thin SVD in the matrix's own precision."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return SVD(u, s, vh)


def numerical_rank(values: Float[Tensor, "r"], rows: int, columns: int) -> int:  # noqa: F821
    """Number of singular values above s₁ · max(m, n) · eps: what lies below is rounding, in an arbitrary basis."""
    if not values.numel():
        return 0
    tolerance = float(values[0]) * max(rows, columns) * torch.finfo(values.dtype).eps
    return int((values > tolerance).sum())
