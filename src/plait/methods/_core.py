"""Merging small matrices whose basis all experts share: what KnOTS and Core Space do inside their spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from plait.methods._trim import rank_kept
from plait.tensors.consensus import disjoint_merge, elect, weighted_sum
from plait.tensors.factors import factor
from plait.tensors.selection import at_least, row_threshold
from plait.tensors.subspaces import combine_subspaces

__all__ = ["Inner", "merge_cores", "trim_whole"]

Inner = Literal["ties", "mean", "sum", "tsv"]
"""The method inside a space: TIES' sign-consistent mean, the mean, the sum, or TSV-Merge's orthogonalised subspaces."""


def trim_whole(core: Tensor, density: float) -> Tensor:
    """Zero all but the `density` largest entries, with TIES' rule for the rank."""
    if density >= 1 or not core.numel():
        return core
    limit = row_threshold(core.reshape(1, -1), rank_kept(core.numel(), density, "inclusive"))
    return core * at_least(core, float(limit))


def merge_cores(cores: Sequence[Tensor], inner: Inner) -> Tensor:
    """Merge matrices in one basis; TIES expects them trimmed.

    An entry whose votes cancel exactly becomes zero: the sign of a singular vector is arbitrary, so no sign may be
    preferred.
    """
    ones = [1.0] * len(cores)
    if inner == "ties":
        return disjoint_merge(cores, elect(cores), ones)
    if inner == "tsv":
        kept = max(1, min(cores[0].shape) // len(cores))
        parts = [factor(core) for core in cores]
        return combine_subspaces([part.top(min(kept, part.rank)) for part in parts])
    total = weighted_sum(cores, ones)
    return total / len(cores) if inner == "mean" else total
