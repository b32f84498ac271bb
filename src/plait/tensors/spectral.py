"""Factorisations and what merging builds from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "SVD",
    "combine_subspaces",
    "common_columns",
    "gram_whitening",
    "normal_equations",
    "numerical_rank",
    "polar",
    "rounding_floor",
    "svd",
]


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
) -> int:
    """Number of singular values above s₁ · max(m, n) · eps and above `floor`.

    What lies below is rounding, in an arbitrary basis.
    """
    if not values.numel():
        return 0
    tolerance = float(values[0]) * max(rows, columns) * torch.finfo(values.dtype).eps
    return int((values > max(tolerance, floor)).sum())


def rounding_floor(weight: Float[Tensor, "m n"]) -> float:
    """Largest singular value that rounding alone leaves in the difference of two weights of this size.

    Entries of a random matrix of deviation ε · rms(W) have a spectral norm of about ε · rms(W) · (√m + √n). An adapter
    that was added to a weight and is subtracted again has this noise in every direction beyond its own rank.
    """
    m, n = weight.shape
    rms = float(torch.linalg.vector_norm(weight)) / math.sqrt(max(m * n, 1))
    return torch.finfo(weight.dtype).eps * rms * (math.sqrt(m) + math.sqrt(n))


def polar(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Orthonormal polar factor U Vh over the numerical rank: the partial isometry A (AᵀA)^(+1/2).

    For full rank this is the closest matrix with orthonormal columns (or rows). Where columns repeat, the factor is
    still defined: directions that the matrix does not reach stay zero instead of being filled arbitrarily.
    """
    factors = svd(matrix)
    kept = factors.top(factors.rank)
    return kept.u @ kept.vh


def gram_whitening(columns: Float[Tensor, "m k"]) -> Float[Tensor, "k k"]:
    """(AᵀA)^(+1/2) by an eigen-decomposition of the Gram matrix, over its numerical rank.

    A (AᵀA)^(+1/2) is the polar factor at the cost of a k × k problem. Squaring the condition number makes it the less
    exact route, so the Gram matrix is formed and decomposed in float64.
    """
    wide = columns.double()
    values, basis = torch.linalg.eigh(wide.mT @ wide)
    if not values.numel():
        return basis.to(columns.dtype)
    # singular values of A are square roots: what is rounding in A lies below the square of A's own tolerance
    tolerance = (max(columns.shape) * torch.finfo(columns.dtype).eps) ** 2
    kept = values > float(values[-1]) * max(tolerance, values.numel() * torch.finfo(torch.float64).eps)
    inverse = torch.where(kept, values.clamp_min(torch.finfo(torch.float64).tiny), torch.inf).rsqrt()
    return ((basis * inverse) @ basis.mT).to(columns.dtype)


def combine_subspaces(
    parts: Sequence[SVD], orthogonalize: Literal["svd", "gram", "none"] = "svd"
) -> Float[Tensor, "m n"]:
    """Sum Û diag(s) V̂ of the parts' triplets after their singular vectors have been made orthogonal to each other.

    Û = polar([U₁ … U_T]) and V̂ = polar([V₁; …; V_T]); with `none` the parts are simply added up.
    """
    u = torch.cat([part.u for part in parts], dim=1)
    s = torch.cat([part.s for part in parts])
    vh = torch.cat([part.vh for part in parts])
    if orthogonalize == "svd":
        u, vh = polar(u), polar(vh)
    elif orthogonalize == "gram":
        u, vh = u @ gram_whitening(u), gram_whitening(vh.mT) @ vh
    return (u * s) @ vh


def common_columns(
    matrices: Sequence[Float[Tensor, "m n"]],
    cutoff: float = 0.0,
    factor: Callable[[Tensor], SVD] = svd,
) -> tuple[Float[Tensor, "m p"], Float[Tensor, "p"]]:  # noqa: F821
    """Left singular vectors of [A₁ … A_T] side by side and their values, above `cutoff` and above rounding.

    Where the m × T·n matrix is wide they come from its m × m Gram matrix Σ AᵢAᵢᵀ. In float64 that resolves singular
    values down to about 1e-8 · √max(m, n) of the largest, which is no worse than float32's own rounding of the inputs.
    """
    rows, columns = matrices[0].shape
    exact = [matrix.double() for matrix in matrices]
    if rows > columns * len(exact):
        u, s, _ = factor(torch.cat(exact, dim=1))
    else:
        gram = exact[0] @ exact[0].mT
        for matrix in exact[1:]:
            gram.addmm_(matrix, matrix.mT)
        u, s, _ = factor(gram)
        s = s.sqrt()
    largest = float(s[0]) if s.numel() else 0.0
    noise = largest * math.sqrt(max(rows, columns) * torch.finfo(torch.float64).eps)
    kept = int((s > max(cutoff, noise)).sum())
    return u[:, :kept].to(matrices[0].dtype), s[:kept].to(matrices[0].dtype)


def normal_equations(
    inputs: Sequence[Float[Tensor, "k n"]], targets: Sequence[Float[Tensor, "m n"]], squares: Sequence[float]
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "m n"]]:
    """C = Σ XᵢᵀXᵢ/sᵢ and D = Σ Yᵢ XᵢᵀXᵢ/sᵢ: the M with M C = D minimises Σ ‖(M − Yᵢ) Xᵢᵀ‖²/sᵢ.

    Terms with sᵢ = 0 are left out.
    """
    n = targets[0].shape[1]
    c, d = targets[0].new_zeros(n, n), torch.zeros_like(targets[0])
    for x, y, square in zip(inputs, targets, squares, strict=True):
        if square > 0:
            gram = x.mT @ (x / square)
            c.add_(gram)
            d.addmm_(y, gram)
    return c, d
