"""Factorisations and what merging builds from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from plait.tensors.products import add_gram, mirror

__all__ = ["SVD", "add_target", "normal_equations", "numerical_rank", "rounding_floor", "svd"]


class SVD(NamedTuple):
    """A = U diag(s) Vh with r = min(m, n) values in descending order."""

    u: Float[Tensor, "m r"]
    s: Float[Tensor, " r"]
    vh: Float[Tensor, "r n"]

    def top(self, k: int) -> SVD:
        """Keep the k largest triplets."""
        return SVD(self.u[:, :k], self.s[:k], self.vh[:k])

    def compact(self) -> SVD:
        """Copies that do not keep the factors alive that these were cut from."""
        return SVD(self.u.clone(), self.s.clone(), self.vh.clone())

    def scaled(self, weight: float) -> SVD:
        """The factors of weight · A: a negative sign goes into U."""
        if weight == 1.0:
            return self
        return SVD(self.u * math.copysign(1.0, weight), self.s * abs(weight), self.vh)

    def matrix(self) -> Float[Tensor, "m n"]:
        """U diag(s) Vh."""
        return (self.u * self.s) @ self.vh

    @property
    def rank(self) -> int:
        """Numerical rank."""
        return self.rank_above()

    def rank_above(self, floor: float = 0.0) -> int:
        """Numerical rank, where values up to `floor` are known to be rounding."""
        return numerical_rank(self.s, self.u.shape[0], self.vh.shape[1], floor)


def svd(matrix: Float[Tensor, "m n"]) -> SVD:
    """Thin SVD in the matrix's own precision."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return SVD(u, s, vh)


def numerical_rank(
    values: Float[Tensor, " r"],
    rows: int,
    columns: int,
    floor: float = 0.0,
    eps: float | None = None,
) -> int:
    """Number of singular values above s₁ · max(m, n) · eps and above `floor`; eps by default that of their dtype.

    What lies below is rounding, in an arbitrary basis.
    """
    if not values.numel():
        return 0
    unit = torch.finfo(values.dtype).eps if eps is None else eps
    tolerance = float(values[0]) * max(rows, columns) * unit
    return int((values > max(tolerance, floor)).sum())


def rounding_floor(weight: Float[Tensor, "m n"]) -> float:
    """Largest singular value that rounding alone leaves in the difference of two weights of this size.

    Entries of a random matrix of deviation ε · rms(W) have a spectral norm of about ε · rms(W) · (√m + √n). An adapter
    that was added to a weight and is subtracted again has this noise in every direction beyond its own rank.
    """
    m, n = weight.shape
    rms = float(torch.linalg.vector_norm(weight)) / math.sqrt(max(m * n, 1))
    return torch.finfo(weight.dtype).eps * rms * (math.sqrt(m) + math.sqrt(n))


def normal_equations(
    inputs: Sequence[Float[Tensor, "k n"]], targets: Sequence[Float[Tensor, "m n"]], squares: Sequence[float]
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "m n"]]:
    """C = Σ XᵢᵀXᵢ/sᵢ and D = Σ Yᵢ XᵢᵀXᵢ/sᵢ: the M with M C = D minimises Σ ‖(M − Yᵢ) Xᵢᵀ‖²/sᵢ.

    Terms with sᵢ = 0 are left out. One input and one target are looked at at a time.
    """
    c: Tensor | None = None
    d: Tensor | None = None
    for i, square in enumerate(squares):
        x = inputs[i]
        y = x if targets is inputs else targets[i]
        if c is None or d is None:
            c, d = x.new_zeros(x.shape[1], x.shape[1]), torch.zeros_like(y)
        if square > 0:
            add_gram(c, x.mT, 1.0 / square)
            add_target(d, y, x, 1.0 / square)
        del x, y  # before the next one is made
    assert c is not None and d is not None
    return mirror(c), d


def add_target(
    total: Float[Tensor, "m n"], target: Float[Tensor, "m n"], rows: Float[Tensor, "k n"], scale: float
) -> None:
    """Add scale · Y XᵀX, multiplied in the order that passes through the smaller square."""
    if rows.shape[0] < rows.shape[1]:
        total.addmm_(target @ rows.mT, rows, alpha=scale)
    else:
        total.addmm_(target, rows.mT @ rows, alpha=scale)
