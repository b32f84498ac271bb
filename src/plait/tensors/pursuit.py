"""Write vectors as sums of few others: orthogonal matching pursuit, and interpolation between neighbours."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["between_neighbours", "matching_pursuit"]

_TINY = 1e-8
_SPENT = 1e-5


def matching_pursuit(
    targets: Float[Tensor, "b d"], atoms: Float[Tensor, "n d"], k: int
) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Approximate each target by k atoms, chosen greedily: t ≈ Σ cᵢaᵢ.

    In each step the atom of the largest |⟨r, a⟩| with the residual r joins (atoms keep their lengths; the first of
    equals), and r becomes what the chosen ones cannot express. The coefficients are those of least squares.

    Args:
        targets: b vectors of d dimensions.
        atoms: n vectors.
        k: number of atoms of each sum, at most n.

    Returns:
        Indices of the atoms in the order of their choice, and their coefficients.
    """
    count, width = targets.shape
    basis = targets.new_zeros(count, k, width)  # orthonormal, of the chosen atoms
    mixing = torch.eye(k, dtype=targets.dtype).repeat(count, 1, 1)  # chosen atom j = Σᵢ mixing[i, j] · basis[i]
    chosen = torch.zeros(count, k, dtype=torch.int64)
    free = torch.ones(count, len(atoms), dtype=torch.bool)
    residual = targets.clone()
    lines = torch.arange(count)
    for step in range(k):
        scores = torch.where(free, (residual @ atoms.mT).abs(), -1.0)
        pick = scores.argmax(dim=1)
        chosen[:, step] = pick
        free[lines, pick] = False
        vector = atoms[pick]
        before = basis[:, :step]
        for _ in range(2):  # once is not enough where atoms are nearly parallel
            share = torch.einsum("bkd,bd->bk", before, vector)
            vector = vector - torch.einsum("bk,bkd->bd", share, before)
            mixing[:, :step, step] += share
        length = vector.norm(dim=1, keepdim=True)
        # an atom that the chosen ones express already adds nothing: it gets the coefficient 0
        spent = length <= _SPENT * atoms[pick].norm(dim=1, keepdim=True)
        basis[:, step] = torch.where(spent, 0.0, vector / torch.where(spent, 1.0, length))
        mixing[:, :step, step] *= ~spent
        mixing[:, step, step] = torch.where(spent, 1.0, length)[:, 0]
        residual = residual - (basis[:, step] * residual).sum(1, keepdim=True) * basis[:, step]
    along = torch.einsum("bkd,bd->bk", basis, targets).unsqueeze(-1)
    return chosen, torch.linalg.solve_triangular(mixing, along, upper=True).squeeze(-1)


def between_neighbours(
    targets: Float[Tensor, "b d"], atoms: Float[Tensor, "n d"], k: int
) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Weigh the k nearest atoms by the inverse of their distance; the weights add up to 1."""
    distance, nearest = torch.cdist(targets, atoms).topk(k, dim=1, largest=False)
    weight = 1.0 / distance.clamp(min=_TINY)
    return nearest, weight / weight.sum(dim=1, keepdim=True)
