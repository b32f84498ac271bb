"""Matrices in the singular basis of all of them side by side, without the basis where that is smaller.

[A₁ … A_T] = U Σ [V₁ … V_T]; the coordinates of Aᵢ are Uᵀ Aᵢ = Σ Vᵢ. Where the side-by-side matrix is wide, U comes from
its m × m Gram matrix. Where it is tall, the T·n × T·n Gram matrix gives Σ and V, and U, which is larger, is never made:
U M = Σᵢ Aᵢ Vᵢᵀ Σ⁻¹ M. One matrix, of the tall ones two, are looked at at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from plait.tensors.factors import RESOLVED, symmetric_eigen
from plait.tensors.products import add_gram, add_product, panels
from plait.tensors.spectral import numerical_rank
from plait.tensors.subspaces import common_columns

__all__ = ["Tied", "tie"]


class Tied:
    """Coordinates of every matrix in the common basis, and the way back.

    Attributes:
        values: the kept singular values Σ, descending.
    """

    def __init__(
        self,
        matrices: Sequence[Float[Tensor, "m n"]],
        values: Float[Tensor, " k"],
        basis: Float[Tensor, "m k"] | None,
        along: Float[Tensor, "tn k"] | None,
    ) -> None:
        self.values = values
        self._matrices = matrices
        self._basis = basis
        self._along = along

    def coordinates(self, index: int) -> Float[Tensor, "k n"]:
        """Uᵀ Aᵢ in new memory."""
        matrix = self._matrices[index]
        if self._basis is not None:
            return self._basis.mT @ matrix
        assert self._along is not None
        n, dtype = matrix.shape[1], matrix.dtype
        del matrix
        own = self._along[index * n : (index + 1) * n]
        return (own * self.values.double()).mT.to(dtype).contiguous()

    def expand(self, core: Float[Tensor, "k n"]) -> Float[Tensor, "m n"]:
        """U M."""
        if self._basis is not None:
            return self._basis @ core
        assert self._along is not None
        out: Tensor | None = None
        n = self._along.shape[0] // len(self._matrices)
        for i in range(len(self._matrices)):
            matrix = self._matrices[i]
            inner = (self._along[i * n : (i + 1) * n] / self.values.double()) @ core.double()
            out = torch.zeros_like(matrix) if out is None else out
            for panel in panels(matrix.shape[0], n):
                out[panel].add_((matrix[panel].double() @ inner).to(out.dtype))
            del matrix
        assert out is not None
        return out


def tie(matrices: Sequence[Float[Tensor, "m n"]], cutoff: float = 0.0) -> Tied:
    """Find the common basis: singular values above `cutoff` and above rounding.

    The Gram matrix of tall float32 matrices gives way to an SVD where it would not resolve what is kept.
    """
    first = matrices[0]
    (m, n), dtype, device, count = first.shape, first.dtype, first.device, len(matrices)
    del first
    if m > n * count and dtype == torch.float32:
        gram = torch.zeros(n * count, n * count, dtype=torch.float64, device=device).mT
        for i in range(count):
            own = matrices[i]
            rows = slice(i * n, (i + 1) * n)
            add_gram(gram[rows, rows], own.mT)
            for j in range(i):
                add_product(gram[rows, j * n : (j + 1) * n], own.mT, matrices[j].mT)
            del own
        squares, along = symmetric_eigen(gram)
        del gram
        values = squares.clamp_min(0.0).sqrt()
        rank = numerical_rank(values, m, n * count, eps=torch.finfo(torch.float32).eps)
        if not rank or float(values[rank - 1]) >= RESOLVED * float(values[0]):
            kept = min(rank, int((values > cutoff).sum()))
            return Tied(matrices, values[:kept].float(), None, along[:, :kept])
    basis, values = common_columns(matrices, cutoff)
    return Tied(matrices, values, basis, None)
