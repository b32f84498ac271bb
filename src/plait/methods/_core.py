"""Merging small matrices whose basis all experts share: what KnOTS and Core Space do inside their spaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from plait.methods._contract import Group, Subject
from plait.methods._inner import arrays_within, check_inner, is_random, merge_within
from plait.methods._trim import rank_kept
from plait.tensors.factors import factor
from plait.tensors.selection import at_least, row_threshold
from plait.tensors.spectral import SVD
from plait.tensors.streams import Stream
from plait.tensors.subspaces import combine_subspaces, stack

__all__ = ["OWN", "InnerMerge", "merge_cores", "trim_below", "trim_whole"]

#: rows of a core that have temporaries of their own at a time
_ROWS = 256

OWN = ("ties", "mean", "sum", "tsv")
"""Methods inside a space that are computed here: TIES' sign-consistent mean, the mean, the sum, or TSV-Merge's
orthogonalised subspaces. Any other method by its name: see `plait.methods._inner`."""


class _Inside(Protocol):
    name: ClassVar[str]

    @property
    def inner(self) -> str: ...
    @property
    def density(self) -> float: ...


class InnerMerge:
    """What a combiner says of itself that merges by another method, its parameter `inner`, in a space of its own."""

    @property
    def random(self: _Inside) -> bool:
        """Whether the method inside is."""
        return self.inner not in OWN and is_random(self.inner, self.density)

    def check(self: _Inside, weights: tuple[float, ...]) -> None:
        """The method inside must merge task vectors."""
        del weights
        if self.inner not in OWN:
            check_inner(self.name, self.inner, self.density)

    def arrays_inside(self: _Inside, subject: Subject, core: tuple[int, int], experts: int) -> float:
        """Arrays of the tensor's size that a method inside needs, which sees cores of that shape, all at once."""
        if self.inner in OWN:
            return 0.0
        cores = Subject(subject.name, core, subject.role)
        return arrays_within(self.inner, self.density, cores, experts) * cores.numel / subject.numel


def trim_whole(core: Tensor, density: float) -> Tensor:
    """Zero all but the `density` largest entries, in place, with TIES' rule for the rank."""
    if density >= 1 or not core.numel():
        return core
    return trim_below(core, float(row_threshold(core.reshape(1, -1), rank_kept(core.numel(), density, "inclusive"))))


def trim_below(core: Tensor, limit: float) -> Tensor:
    """Zero all entries below a magnitude, in place."""
    for rows in core.split(_ROWS):
        rows.mul_(at_least(rows, limit))
    return core


def merge_cores(cores: Sequence[Tensor], inner: str, group: Group, density: float) -> Tensor:
    """Merge matrices in one basis, looking at one at a time; TIES expects them trimmed.

    An entry whose votes cancel exactly becomes zero: the sign of a singular vector is arbitrary, so no sign may be
    preferred.
    """
    if inner not in OWN:
        return merge_within(cores, inner, group, density)
    if inner == "ties":
        return _agreeing_mean(cores)
    if inner == "tsv":
        kept = max(1, min(cores[0].shape) // len(cores))
        return combine_subspaces(stack(_leading(cores, kept), kept * len(cores)))
    total = _sum(cores)
    return total.div_(len(cores)) if inner == "mean" else total


def _sum(cores: Sequence[Tensor]) -> Tensor:
    total = cores[0].clone() if not isinstance(cores, Stream) else cores[0]
    for i in range(1, len(cores)):
        total.add_(cores[i])
    return total


def _leading(cores: Sequence[Tensor], kept: int) -> Iterator[SVD]:
    for i in range(len(cores)):
        factors = factor(cores[i])
        yield factors.top(min(kept, factors.rank))
        del factors


def _agreeing_mean(cores: Sequence[Tensor]) -> Tensor:
    """TIES' mean over those who have the sign of the sum, in two passes; few rows have temporaries at a time."""
    sign = _sum(cores).sign_().to(torch.int8)
    total = torch.zeros(sign.shape, dtype=cores[0].dtype, device=sign.device)
    voters = torch.zeros_like(sign, dtype=torch.int16)
    for i in range(len(cores)):
        core = cores[i]
        for start in range(0, core.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            agree = core[rows] * sign[rows] > 0
            total[rows].addcmul_(core[rows], agree.to(core.dtype))
            voters[rows].add_(agree)
        del core
    return total.div_(voters.clamp_min_(1))
