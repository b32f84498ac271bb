"""Rotations as points of a linear space: orthogonal Procrustes and the Cayley transform.

Everything here expects float64: a rotation close to the identity differs from it by less than float32 can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from plait.tensors.factors import Factors
from plait.tensors.products import add_product, gram_of_rows, mirror, times
from plait.tensors.spectral import SVD, svd

__all__ = [
    "SkewMean",
    "Turn",
    "cayley",
    "closest_rotation",
    "closest_turn",
    "moved_by",
    "rotation_of",
    "spans_less",
]

#: singular values below this share of the largest are rounding of the weights: their directions mean nothing
_RANK = 1e-5
#: |1 + λ|² that an eigenvalue of a rotation must keep from −1, where the Cayley transform has its pole
_POLE = 1e-6
#: rows that are multiplied at a time
_ROWS = 256


def closest_rotation(factors: SVD) -> Float[Tensor, "n n"] | None:
    """The rotation R that maximises tr(RᵀM), from the SVD of a square M = W₀ᵀT; None where it is ill-defined.

    The leading triplets are enough where M has no others.

    R = U₁V₁ᵀ on the numerical range of M. On its null space every orthogonal map is as good; the one closest to the
    identity, N_U polar(N_UᵀN_V) N_Vᵀ, is chosen there, so that directions the weights do not see stay where they are.
    A reflection is turned into a rotation along the direction that matters least. A rotation that turns something by
    nearly 180° has no stable Cayley transform and is refused.
    """
    size = factors.u.shape[0]
    if not factors.s.numel() or not float(factors.s[0]) > 0:
        return None
    rank = int((factors.s > _RANK * factors.s[0]).sum())
    left, right = factors.u[:, :rank], factors.vh[:rank].mT
    rotation = left @ right.mT
    if rank < size:
        unseen, unmade = _complement(factors.u, rank), _complement(factors.vh.mT, rank)
        null = svd(unseen.mT @ unmade)
        left, right = unseen @ null.u, unmade @ null.vh.mT
        del unseen, unmade, null
        rotation.addmm_(left, right.mT)
    if float(torch.linalg.slogdet(rotation).sign) < 0:
        rotation.addr_(left[:, -1], right[:, -1], alpha=-2.0)
    del left, right
    # for an eigenvalue λ = e^{iφ}, |1 + λ|² = 2 + 2 cos φ, and cos φ is an eigenvalue of the symmetric part
    symmetric = (rotation + rotation.mT).mul_(0.5)
    symmetric.diagonal().add_(1.0 - 0.5 * _POLE)
    return rotation if int(torch.linalg.cholesky_ex(symmetric).info) == 0 else None


def _complement(vectors: Float[Tensor, "n k"], rank: int) -> Float[Tensor, "n c"]:
    """An orthonormal basis of what the first `rank` of these orthonormal vectors do not span."""
    if vectors.shape[0] == vectors.shape[1]:
        return vectors[:, rank:]
    return torch.linalg.qr(vectors[:, :rank], mode="complete")[0][:, rank:].clone()


def cayley(rotation: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """(R + I)⁻¹(R − I), the skew-symmetric matrix of a rotation."""
    above, below = _by_columns(rotation), rotation.clone()
    above.diagonal().add_(1.0)
    below.diagonal().sub_(1.0)
    skew = _solve(above, below)
    del above, below
    return (skew - skew.mT).mul_(0.5)


def rotation_of(skew: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """(I − A)⁻¹(I + A), the rotation of a skew-symmetric matrix."""
    eye = torch.eye(skew.shape[0], dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(eye - skew, eye + skew)


def _by_columns(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """A copy stored by columns, as LAPACK wants it: it can be decomposed where it lies."""
    return matrix.mT.clone(memory_format=torch.contiguous_format).mT


def _solve(matrix: Float[Tensor, "n n"], right: Float[Tensor, "p k"], left: bool = True) -> Tensor:
    """M⁻¹B, or BM⁻¹; a matrix that is stored by columns is replaced by its decomposition."""
    pivots = torch.empty(matrix.shape[0], dtype=torch.int32, device=matrix.device)
    torch.linalg.lu_factor(matrix, out=(matrix, pivots))
    return torch.linalg.lu_solve(matrix, pivots, right, left=left)


@dataclass(frozen=True, eq=False)
class Turn:
    """A rotation R of n dimensions: `small` itself, or 1 + Q (small − 1) Qᵀ where it moves the span of `basis` only."""

    small: Float[Tensor, "p p"]
    basis: Float[Tensor, "n p"] | None = None

    def moved(self, base: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """W₀R − W₀ without the cancellation: W₀(R − 1)."""
        change = self.small.clone()
        change.diagonal().sub_(1.0)
        if self.basis is None:
            return times(change.mT, base.mT).mT
        return ((base.double() @ self.basis) @ change @ self.basis.mT).to(base.dtype)


def spans_less(rows: int, added: int, columns: int) -> bool:
    """Whether the rows of a weight and those added to it span so few directions that their basis is worth its cost."""
    return 4 * (rows + added) <= 3 * columns


def _orthonormal(rows: Float[Tensor, "p n"]) -> Float[Tensor, "n p"]:
    """An orthonormal basis in float64 whose first columns span the first rows, for p ≤ n; holds nothing beside it."""
    basis = rows.to(torch.float64, copy=True, memory_format=torch.contiguous_format).mT
    del rows
    scales = basis.new_empty(basis.shape[1])
    torch.geqrf(basis, out=(basis, scales))
    return torch.linalg.householder_product(basis, scales, out=basis)


def closest_turn(
    base: Float[Tensor, "m n"],
    delta: Float[Tensor, "m n"],
    rows: Bool[Tensor, " m"] | slice,
    factor: Callable[[Tensor], Factors],
) -> Turn | None:
    """The rotation for which W₀R is closest to W₀ with some rows of τ added; None where it is ill-defined.

    Directions that neither W₀ nor those rows see stay in place, so that where these are few the problem is solved in
    their span. W₀ᵀ(W₀ + τ) is formed in float64 without adding up W₀ and τ.
    """
    part, added = base[rows], delta[rows]
    m, n = base.shape
    if m >= n:
        product = mirror(gram_of_rows(base.mT))
        add_product(product, part.mT, added.mT)
        rotation = closest_rotation(factor(product).top(n))
        return None if rotation is None else Turn(rotation)
    if not spans_less(m, added.shape[0], n):
        basis, triangle = torch.linalg.qr(base.mT.double())
        target = base.to(torch.float64, copy=True)
        target[rows] += added
        factors = factor(triangle @ target).top(m)  # W₀ᵀT has no more than m triplets
        rotation = closest_rotation(SVD(basis @ factors.u, factors.s, factors.vh))
        return None if rotation is None else Turn(rotation)
    basis = _orthonormal(torch.cat([base, added]))
    seen = base.double() @ basis
    target = seen.clone()
    target[rows] += added.double() @ basis
    # the first m directions span all rows of W₀: of its products with the others nothing but rounding would be left
    product = seen[:, :m].mT @ target
    left = product.new_zeros(m + added.shape[0], m)
    del seen, target, part, added
    factors = factor(product).top(m)
    del product
    left[:m] = factors.u
    rotation = closest_rotation(SVD(left, factors.s, factors.vh))
    return None if rotation is None else Turn(rotation, basis)


def moved_by(base: Float[Tensor, "m n"], skew: Float[Tensor, "n n"]) -> Float[Tensor, "m n"]:
    """W₀(R − 1) for the rotation of a skew-symmetric A, which is lost: R − 1 = 2A(1 − A)⁻¹."""
    if base.shape[0] >= base.shape[1]:
        change = rotation_of(skew)
        change.diagonal().sub_(1.0)
        return times(change.mT, base.mT).mT
    moved = base.double() @ skew
    below = (skew if skew.stride(-1) == 1 else skew.contiguous()).mT  # Aᵀ = −A, stored by columns
    below.diagonal().add_(1.0)
    return _solve(below, moved, left=False).mul_(2.0).to(base.dtype)


class SkewMean:
    """The direction of ΣAᵢ at the mean length of the Aᵢ; 0 where they cancel. Holds one matrix."""

    def __init__(self, size: int, device: torch.device | None = None) -> None:
        self._size = size
        self._device = device
        self._total: Tensor | None = None
        self._length = 0.0

    def __bool__(self) -> bool:
        """Whether any was taken in."""
        return self._total is not None

    def add(self, turn: Turn) -> None:
        """Take in the Cayley transform of a rotation."""
        skew = cayley(turn.small)
        self._length += float(torch.linalg.vector_norm(skew))  # an orthonormal basis does not change it
        if turn.basis is None:
            self._total = skew if self._total is None else self._total.add_(skew)
            return
        if self._total is None:
            self._total = torch.zeros(self._size, self._size, dtype=skew.dtype, device=skew.device)
        for start in range(0, self._size, _ROWS):
            rows = slice(start, start + _ROWS)
            self._total[rows].addmm_(turn.basis[rows] @ skew, turn.basis.mT)

    def take(self, count: int) -> Float[Tensor, "n n"]:
        """The mean of `count` of them, of which those not taken in are 0; nothing is left here."""
        total, self._total = self._total, None
        if total is None:
            return torch.zeros(self._size, self._size, dtype=torch.float64, device=self._device)
        size = float(torch.linalg.vector_norm(total))
        return total.mul_(self._length / count / size if size >= 1e-8 else 0.0)
