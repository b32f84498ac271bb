"""Singular values and vectors of large matrices by matrix products: the Gram matrix of the shorter side, in float64.

A = U diag(s) Vh with r = min(m, n). For a float32 matrix, A Aᵀ (or AᵀA) formed and decomposed in float64 gives s² with
an error of about 2⁻⁵² s₁². Relative to sᵢ² that is small for all triplets that stand above float32's own rounding, as
long as sᵢ > 2⁻¹³ s₁; vectors of the longer side are then Aᵀuᵢ/sᵢ, orthonormal to 2⁻⁵² (s₁/sᵢ)². Triplets below
s₁ · max(m, n) · 2⁻²³ are rounding by the rule of `numerical_rank`, so that from a side of 1024 on nothing that is
used can lie below that bound. Where a smaller matrix has such triplets, and for float64 matrices, which have no wider
type to be squared in, LAPACK's SVD in float64 takes the place of the Gram matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from plait.tensors.products import add_product, gram_of_rows, times
from plait.tensors.spectral import SVD, numerical_rank

__all__ = ["RESOLVED", "Factors", "exact_factor", "factor", "polar", "symmetric_eigen"]

#: share of the largest singular value down to which the Gram route is as exact as float32
RESOLVED = 2.0**-13


@dataclass(frozen=True, eq=False)
class Factors:
    """What a factorisation of a matrix knows.

    Attributes:
        matrix: the matrix itself, not a copy: what is asked of the longer side is computed from it. Overwriting it
            makes the factors useless.
        s: its singular values, descending, in float64.
        short: singular vectors of its shorter side as columns, in float64: U where m ≤ n, else V.
        long: those of the longer side where they had to be computed exactly, else None.
    """

    matrix: Float[Tensor, "m n"]
    s: Float[Tensor, " r"]
    short: Float[Tensor, "r r"]
    long: Float[Tensor, "l r"] | None = None

    @property
    def tall(self) -> bool:
        """Whether the shorter side is that of the columns."""
        return self.matrix.shape[0] > self.matrix.shape[1]

    @property
    def rows(self) -> Float[Tensor, "r l"]:
        """The matrix with its long side along the rows: A where m ≤ n, else Aᵀ."""
        return self.matrix.mT if self.tall else self.matrix

    @property
    def rank(self) -> int:
        """Numerical rank."""
        return self.rank_above()

    def rank_above(self, floor: float = 0.0) -> int:
        """Numerical rank, where values up to `floor` are known to be rounding."""
        m, n = self.matrix.shape
        return numerical_rank(self.s, m, n, floor, torch.finfo(self.matrix.dtype).eps)

    def along(self, k: int) -> Float[Tensor, "k l"]:
        """The k leading vectors of the longer side as rows, in the matrix's precision: (short Aᵀ)/s."""
        if self.long is not None:
            return self.long[:, :k].mT.to(self.matrix.dtype)
        return times((self.short[:, :k] / self.s[:k]).mT, self.rows)

    def top(self, k: int) -> SVD:
        """The k largest triplets, in the matrix's precision; k at most the numerical rank."""
        across, along = self.short[:, :k].to(self.matrix.dtype), self.along(k)
        values = self.s[:k].to(self.matrix.dtype)
        return SVD(along.mT, values, across.mT) if self.tall else SVD(across, values, along)

    def left(self, k: int) -> Float[Tensor, "m k"]:
        """The k leading left singular vectors in float64."""
        if not self.tall:
            return self.short[:, :k].clone()
        if self.long is not None:
            return self.long[:, :k].clone()
        out = self.s.new_empty(k, self.matrix.shape[0])
        return times((self.short[:, :k] / self.s[:k]).mT, self.rows, out).mT

    def core(self, other: Float[Tensor, "m n"], k: int) -> Float[Tensor, "k k"]:
        """Inner products of another matrix B with the k leading pairs of vectors: qᵢᵀ B pⱼ, q of the shorter side."""
        basis, rows = self.short[:, :k], other.mT if self.tall else other
        if self.long is not None:
            return basis.mT @ rows.to(basis.dtype) @ self.long[:, :k]
        cross = basis.new_zeros(basis.shape[0], basis.shape[0])
        add_product(cross, rows, self.rows)
        return basis.mT @ cross @ (basis / self.s[:k])

    def expand(self, core: Float[Tensor, "k k"]) -> Float[Tensor, "m n"]:
        """Σ cᵢⱼ qᵢ pⱼᵀ over the leading pairs of vectors, q of the shorter side: the inverse of `core`."""
        k = core.shape[0]
        basis = self.short[:, :k]
        if self.long is not None:
            found = (basis @ core @ self.long[:, :k].mT).to(self.matrix.dtype)
        else:
            found = times(basis @ (core / self.s[:k]) @ basis.mT, self.rows)
        return found.mT if self.tall else found

    def whitening(self, k: int) -> Float[Tensor, "r r"]:
        """S = Q diag(1/s) Qᵀ over the k leading vectors Q of the shorter side, in float64: S A (or A S) is U Vh."""
        return (self.short[:, :k] / self.s[:k]) @ self.short[:, :k].mT

    def polar(self, k: int, *, overwrite: bool = False) -> Float[Tensor, "m n"]:
        """U Vh of the k leading triplets; `overwrite` puts it into the matrix."""
        if self.long is not None:
            found = (self.short[:, :k] @ self.long[:, :k].mT).to(self.matrix.dtype)
            return found.mT if self.tall else found
        found = times(self.whitening(k), self.rows, self.rows if overwrite else None)
        return found.mT if self.tall else found

    def truncated(self, k: int) -> Float[Tensor, "m n"]:
        """The closest matrix of rank k: the projection on the k leading vectors of the shorter side."""
        basis = self.short[:, :k]
        found = times(basis @ basis.mT, self.rows)
        return found.mT if self.tall else found


def symmetric_eigen(
    lower: Float[Tensor, "r r"],
) -> tuple[Float[Tensor, " r"], Float[Tensor, "r r"]]:
    """Eigenvalues, descending, and eigenvectors of a symmetric matrix given by its lower triangle, which is lost.

    On the CPU a matrix stored by columns is replaced by its eigenvectors: they need no memory of their own.
    """
    if lower.device.type != "cpu" or not lower.numel():
        values, basis = torch.linalg.eigh(lower)
    else:
        values = lower.new_empty(lower.shape[0])
        values, basis = torch.linalg.eigh(lower, out=(values, lower))
    return values.flip(0), basis.flip(1).contiguous()  # in one layout: products of another may round differently


def exact_factor(matrix: Float[Tensor, "m n"]) -> Factors:
    """Factor by LAPACK's SVD in float64."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    short, long = (vh.mT, u) if matrix.shape[0] > matrix.shape[1] else (u, vh.mT)
    return Factors(matrix, s, short.contiguous(), long.contiguous())


def factor(matrix: Float[Tensor, "m n"]) -> Factors:
    """Factor by the Gram matrix of the shorter side where that is as exact as the matrix, else by an SVD."""
    if matrix.dtype == torch.float64:
        return exact_factor(matrix)
    m, n = matrix.shape
    squares, basis = symmetric_eigen(gram_of_rows(matrix if m <= n else matrix.mT))
    values = squares.clamp_min(0.0).sqrt()
    rank = numerical_rank(values, m, n, eps=torch.finfo(matrix.dtype).eps)
    if rank and float(values[rank - 1]) < RESOLVED * float(values[0]):
        return exact_factor(matrix)
    return Factors(matrix, values, basis)


def polar(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Orthonormal polar factor U Vh over the numerical rank: the partial isometry A (AᵀA)^(+1/2).

    For full rank this is the closest matrix with orthonormal columns (or rows). Where columns repeat, the factor is
    still defined: directions that the matrix does not reach stay zero instead of being filled arbitrarily.
    """
    factors = factor(matrix)
    return factors.polar(factors.rank)
