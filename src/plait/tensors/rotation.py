"""Rotations as points of a linear space: orthogonal Procrustes and the Cayley transform.

Everything here expects float64: a rotation close to the identity differs from it by less than float32 can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    "mean_skew",
    "moved_by",
    "rotation_of",
]

#: singular values below this share of the largest are rounding of the weights: their directions mean nothing
_RANK = 1e-5
#: |1 + λ|² that an eigenvalue of a rotation must keep from −1, where the Cayley transform has its pole
_POLE = 1e-6


def closest_rotation(factors: SVD) -> Float[Tensor, "n n"] | None:
    """The rotation R that maximises tr(RᵀM), from the SVD of a square M = W₀ᵀT; None where it is ill-defined.

    R = U₁V₁ᵀ on the numerical range of M. On its null space every orthogonal map is as good; the one closest to the
    identity, N_U polar(N_UᵀN_V) N_Vᵀ, is chosen there, so that directions the weights do not see stay where they are.
    A reflection is turned into a rotation along the direction that matters least. A rotation that turns something by
    nearly 180° has no stable Cayley transform and is refused.
    """
    size = factors.s.numel()
    if not size or not float(factors.s[0]) > 0:
        return None
    rank = int((factors.s > _RANK * factors.s[0]).sum())
    left, right = factors.u, factors.vh.mT
    if rank < size:
        null = svd(left[:, rank:].mT @ right[:, rank:])
        left = torch.cat([left[:, :rank], left[:, rank:] @ null.u], dim=1)
        right = torch.cat([right[:, :rank], right[:, rank:] @ null.vh.mT], dim=1)
    rotation = left @ right.mT
    if float(torch.linalg.slogdet(rotation).sign) < 0:
        rotation = rotation - 2.0 * torch.outer(left[:, -1], right[:, -1])
    # for an eigenvalue λ = e^{iφ}, |1 + λ|² = 2 + 2 cos φ, and cos φ is an eigenvalue of the symmetric part
    symmetric = 0.5 * (rotation + rotation.mT)
    symmetric.diagonal().add_(1.0 - 0.5 * _POLE)
    return rotation if int(torch.linalg.cholesky_ex(symmetric).info) == 0 else None


def cayley(rotation: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """(R + I)⁻¹(R − I), the skew-symmetric matrix of a rotation."""
    eye = torch.eye(rotation.shape[0], dtype=rotation.dtype, device=rotation.device)
    skew = torch.linalg.solve(rotation + eye, rotation - eye)
    return 0.5 * (skew - skew.mT)


def rotation_of(skew: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """(I − A)⁻¹(I + A), the rotation of a skew-symmetric matrix."""
    eye = torch.eye(skew.shape[0], dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(eye - skew, eye + skew)


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

    def skew(self) -> Float[Tensor, "n n"]:
        """Its Cayley transform."""
        skew = cayley(self.small)
        return skew if self.basis is None else self.basis @ skew @ self.basis.mT


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
    span = base.shape[0] + added.shape[0]
    if 4 * span > 3 * base.shape[1]:
        product = mirror(gram_of_rows(base.mT))
        add_product(product, part.mT, added.mT)
        rotation = closest_rotation(factor(product).top(product.shape[0]))
        return None if rotation is None else Turn(rotation)
    basis = torch.linalg.qr(torch.cat([base, added]).mT.double())[0]
    seen = base.double() @ basis
    target = seen.clone()
    target[rows] += added.double() @ basis
    rotation = closest_rotation(factor(seen.mT @ target).top(span))
    return None if rotation is None else Turn(rotation, basis)


def moved_by(base: Float[Tensor, "m n"], skew: Float[Tensor, "n n"]) -> Float[Tensor, "m n"]:
    """W₀(R − 1) for the rotation of a skew-symmetric A: R − 1 = 2A(1 − A)⁻¹."""
    m, n = base.shape
    if m >= n:
        change = rotation_of(skew)
        change.diagonal().sub_(1.0)
        return times(change.mT, base.mT).mT
    left = skew.clone()
    left.diagonal().add_(1.0)  # (1 − A)ᵀ
    return (torch.linalg.solve(left, base.double().mT).mT @ skew).mul_(2.0).to(base.dtype)


class SkewMean:
    """The direction of ΣAᵢ at the mean length of the Aᵢ; 0 where they cancel. Holds one matrix."""

    def __init__(self, size: int, device: torch.device | None = None) -> None:
        self._size = size
        self._device = device
        self._total: Tensor | None = None
        self._length = 0.0

    def add(self, skew: Float[Tensor, "n n"]) -> None:
        """Take one in."""
        self._length += float(torch.linalg.vector_norm(skew))
        self._total = skew.clone() if self._total is None else self._total.add_(skew)

    def mean(self, count: int) -> Float[Tensor, "n n"]:
        """The mean of `count` of them, of which those not taken in are 0."""
        if self._total is None:
            return torch.zeros(self._size, self._size, dtype=torch.float64, device=self._device)
        size = float(torch.linalg.vector_norm(self._total))
        return self._total * (self._length / count / size if size >= 1e-8 else 0.0)


def mean_skew(skews: Sequence[Float[Tensor, "n n"]]) -> Float[Tensor, "n n"]:
    """The mean of skew-symmetric matrices as `SkewMean` has it."""
    found = SkewMean(skews[0].shape[0])
    for skew in skews:
        found.add(skew)
    return found.mean(len(skews))
