"""What merging builds from the singular vectors of several matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from plait.tensors.factors import factor, polar, symmetric_eigen
from plait.tensors.products import add_gram, gram_of_rows, times
from plait.tensors.spectral import SVD, numerical_rank

__all__ = [
    "Orthogonalize",
    "Subspaces",
    "combine_subspaces",
    "common_columns",
    "gram_whitening",
    "join",
    "leading_columns",
    "stack",
]

Orthogonalize = Literal["svd", "gram", "none"]


class Subspaces(NamedTuple):
    """Triplets of several matrices side by side: [U₁ … U_T], (s₁ … s_T), [V₁; …; V_T], and how many each gave."""

    u: Float[Tensor, "m k"]
    s: Float[Tensor, " k"]
    vh: Float[Tensor, "k n"]
    sizes: tuple[int, ...]

    def parts(self) -> list[SVD]:
        """The triplets of each matrix, as views."""
        spans = zip(accumulate(self.sizes, initial=0), accumulate(self.sizes), strict=False)
        return [SVD(self.u[:, a:b], self.s[a:b], self.vh[a:b]) for a, b in spans]


def stack(parts: Iterable[SVD], rank: int) -> Subspaces:
    """Put triplets side by side as they come, at most `rank` in all, holding none of them twice."""
    left: Tensor | None = None
    values: list[Tensor] = []
    sizes: list[int] = []
    right = left
    for part in parts:
        if left is None or right is None:
            # rows that no triplet fills are never touched, and so take no memory
            left, right = part.u.new_empty(rank, part.u.shape[0]), part.vh.new_empty(rank, part.vh.shape[1])
        start, size = sum(sizes), part.s.numel()
        left[start : start + size] = part.u.mT
        right[start : start + size] = part.vh
        values.append(part.s.clone())
        sizes.append(size)
        del part
    assert left is not None and right is not None
    total = sum(sizes)
    return Subspaces(left[:total].mT, torch.cat(values), right[:total], tuple(sizes))


def combine_subspaces(parts: Sequence[SVD] | Subspaces, orthogonalize: Orthogonalize = "svd") -> Float[Tensor, "m n"]:
    """Sum Û diag(s) V̂ of the parts' triplets after their singular vectors have been made orthogonal to each other.

    Û = polar([U₁ … U_T]) and V̂ = polar([V₁; …; V_T]); with `none` the parts are simply added up.
    """
    joined = parts if isinstance(parts, Subspaces) else stack(parts, sum(p.s.numel() for p in parts))
    return join(joined.u, joined.s, joined.vh, orthogonalize)


def join(
    u: Float[Tensor, "m k"], s: Float[Tensor, " k"], vh: Float[Tensor, "k n"], orthogonalize: Orthogonalize = "svd"
) -> Float[Tensor, "m n"]:
    """Û diag(s) V̂; all factors but those of the longer side are multiplied with each other first."""
    if not s.numel():
        return u.new_zeros(u.shape[0], vh.shape[1])
    if u.shape[0] > vh.shape[1]:
        return join(vh.mT, s, u.mT, orthogonalize).mT
    if orthogonalize == "none":
        return times(u.double() * s, vh)
    if orthogonalize == "gram":
        return times(((u.double() @ _whitening(u)) * s) @ _whitening(vh.mT), vh)
    left = polar(u).double() * s
    right = factor(vh)
    if right.tall or right.long is not None:
        return times(left, right.polar(right.rank))
    return times(left @ right.whitening(right.rank), vh)


def gram_whitening(columns: Float[Tensor, "m k"]) -> Float[Tensor, "k k"]:
    """(AᵀA)^(+1/2) by an eigen-decomposition of the Gram matrix, over its numerical rank.

    A (AᵀA)^(+1/2) is the polar factor at the cost of a k × k problem. Squaring the condition number makes it the less
    exact route, so the Gram matrix is formed and decomposed in float64.
    """
    return _whitening(columns).to(columns.dtype)


def _whitening(columns: Float[Tensor, "m k"]) -> Float[Tensor, "k k"]:
    values, basis = symmetric_eigen(gram_of_rows(columns.mT))
    if not values.numel():
        return basis
    # singular values of A are square roots: what is rounding in A lies below the square of A's own tolerance
    tolerance = (max(columns.shape) * torch.finfo(columns.dtype).eps) ** 2
    kept = values > float(values[0]) * max(tolerance, values.numel() * torch.finfo(torch.float64).eps)
    inverse = torch.where(kept, values.clamp_min(torch.finfo(torch.float64).tiny), torch.inf).rsqrt()
    return (basis * inverse) @ basis.mT


def common_columns(
    matrices: Sequence[Float[Tensor, "m n"]], cutoff: float = 0.0
) -> tuple[Float[Tensor, "m p"], Float[Tensor, " p"]]:
    """Left singular vectors of [A₁ … A_T] side by side and their values, above `cutoff` and above rounding.

    Where the m × T·n matrix is wide they come from its m × m Gram matrix Σ AᵢAᵢᵀ. In float64 that resolves singular
    values down to about 1e-8 · √max(m, n) of the largest, which is no worse than float32's own rounding of the inputs.
    One matrix is looked at at a time.
    """
    first = matrices[0]
    (m, n), dtype = first.shape, first.dtype
    if m > n * len(matrices):
        return _tall_columns(matrices, cutoff)
    gram = gram_of_rows(first)
    del first
    for i in range(1, len(matrices)):
        add_gram(gram, matrices[i])
    squares, u = symmetric_eigen(gram)
    s = squares.clamp_min(0.0).sqrt()
    noise = float(s[0]) * math.sqrt(max(m, n) * torch.finfo(torch.float64).eps) if m else 0.0
    kept = int((s > max(cutoff, noise)).sum())
    return u[:, :kept].to(dtype), s[:kept].to(dtype)


def leading_columns(columns: Float[Tensor, "m k"], count: int, unit: float) -> Float[Tensor, "m p"]:
    """The `count` leading left singular vectors of a float64 matrix whose columns are known to a relative `unit`.

    From the Gram matrix of its shorter side: none is returned whose singular value is rounding by that unit, and those
    that are lie far above the root of float64's own.
    """
    m, k = columns.shape
    squares, basis = symmetric_eigen(gram_of_rows(columns if m <= k else columns.mT))
    values = squares.clamp_min(0.0).sqrt()
    kept = min(count, numerical_rank(values, m, k, eps=max(unit, 2.0**-23)))
    return basis[:, :kept] if m <= k else columns @ (basis[:, :kept] / values[:kept])


def _tall_columns(
    matrices: Sequence[Float[Tensor, "m n"]], cutoff: float
) -> tuple[Float[Tensor, "m p"], Float[Tensor, " p"]]:
    """The same where all columns together are fewer than the rows."""
    factors = factor(torch.cat(list(matrices), dim=1))
    kept = min(factors.rank, int((factors.s > cutoff).sum()))
    found = factors.top(kept)
    return found.u, found.s
