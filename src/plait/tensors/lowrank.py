"""Matrices that are known by two thin factors: sums, products and singular values without the dense matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from plait.tensors.spectral import SVD, numerical_rank

__all__ = ["LowRank", "choose_rank", "common_basis", "concatenate", "from_svd"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """The matrix B A; a rank of 0 is the zero matrix.

    Attributes:
        b: left factor, every scale folded in.
        a: right factor.
    """

    b: Float[Tensor, "m r"]
    a: Float[Tensor, "r n"]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the product."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def rank(self) -> int:
        """Number of columns of B, an upper bound of the product's rank."""
        return self.b.shape[1]

    @property
    def mT(self) -> LowRank:
        """The transpose."""
        return LowRank(self.a.mT, self.b.mT)

    def dense(self) -> Float[Tensor, "m n"]:
        """B A."""
        return self.b @ self.a

    def scaled(self, weight: float) -> LowRank:
        """Return weight · B A."""
        return self if weight == 1.0 else LowRank(self.b * weight, self.a)

    def balanced(self) -> LowRank:
        """The same product with every column of B as long as its row of A: no arbitrary scale between them."""
        left, right = self.b.norm(dim=0), self.a.norm(dim=1)
        root = torch.where((left > 0) & (right > 0), (right / left).sqrt(), 0.0).nan_to_num(0.0, 0.0, 0.0)
        inverse = torch.where(root > 0, 1 / root, 0.0)
        return LowRank(self.b * root, self.a * inverse[:, None])

    def squared_norm(self) -> float:
        """‖B A‖²_F = tr((BᵀB)(A Aᵀ)), in float64."""
        b, a = self.b.double(), self.a.double()
        return max(0.0, float(((b.mT @ b) * (a @ a.mT)).sum()))

    def inner(self, other: LowRank) -> float:
        """⟨B A, B' A'⟩, in float64."""
        left = self.b.double().mT @ other.b.double()
        right = self.a.double() @ other.a.double().mT
        return float((left * right).sum())

    def svd(self) -> SVD:
        """Singular values and vectors above float32's rounding, in float64: B = QR, Aᵀ = Q'R', SVD of R R'ᵀ.

        No m × n matrix is made: the cost is that of the two QR factorisations, O((m + n) r²).
        """
        m, n = self.shape
        if not self.rank:
            return SVD(self.b.new_zeros(m, 0).double(), self.b.new_zeros(0).double(), self.a.new_zeros(0, n).double())
        left, inner = torch.linalg.qr(self.b.double())
        right, outer = torch.linalg.qr(self.a.double().mT)
        u, s, vh = torch.linalg.svd(inner @ outer.mT, full_matrices=False)
        kept = numerical_rank(s, m, n, eps=2.0**-23)
        return SVD(left @ u[:, :kept], s[:kept], vh[:kept] @ right.mT)


def from_svd(parts: SVD) -> LowRank:
    """Balanced factors in float32: B = U √s, A = √s V."""
    root = parts.s.sqrt()
    return LowRank((parts.u * root).float(), (parts.vh * root[:, None]).float())


def concatenate(parts: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Σ wᵢ BᵢAᵢ exactly, as [w₁B₁ … w_TB_T] [A₁; …; A_T]."""
    b = torch.cat([part.b * weight for part, weight in zip(parts, weights, strict=True)], dim=1)
    return LowRank(b, torch.cat([part.a for part in parts], dim=0))


def choose_rank(values: Float[Tensor, " r"], rank: int | None, energy: float | None) -> int:
    """How many singular values to keep: at most `rank`, and no more than hold the share `energy` of Σ s².

    With neither, all of them.
    """
    count = int(values.numel())
    if energy is not None and count:
        squares = values.double().square()
        share = squares.cumsum(0) / squares.sum()
        # the last share is 1 up to rounding, and must not ask for one value more than there are
        count = min(count, int((share < energy * (1 - 1e-12)).sum()) + 1)
    return count if rank is None else min(count, rank)


def common_basis(
    parts: Sequence[LowRank], weights: Sequence[float], cutoff: float = 0.0
) -> tuple[Float[Tensor, "m p"], Float[Tensor, " p"], tuple[Tensor, ...]]:
    """U and s of [w₁Δ₁ … w_TΔ_T] = U diag(s) V above `cutoff` and above rounding, and the coordinates Uᵀ wᵢΔᵢ.

    [w₁B₁ … w_TB_T] = Q R gives the small matrix [R₁A₁ … R_TA_T] with the same values: no m × n matrix is made.
    """
    dtype = parts[0].b.dtype
    q, r = torch.linalg.qr(torch.cat([p.b.double() * w for p, w in zip(parts, weights, strict=True)], dim=1))
    pieces = r.split([part.rank for part in parts], dim=1)
    inner = [piece @ part.a.double() for piece, part in zip(pieces, parts, strict=True)]
    u, s, _ = torch.linalg.svd(torch.cat(inner, dim=1), full_matrices=False)
    width = sum(part.shape[1] for part in parts)
    kept = min(numerical_rank(s, q.shape[0], width, eps=2.0**-23), int((s > cutoff).sum()))
    basis = (q @ u[:, :kept]).to(dtype)
    return basis, s[:kept].to(dtype), tuple((u[:, :kept].mT @ core).to(dtype) for core in inner)
