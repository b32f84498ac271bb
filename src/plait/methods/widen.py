"""WIDEN: weigh every input column by how much its magnitude and its direction have changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Subject, Unit
from plait.methods._parameters import Doc, NonNegative

__all__ = ["Widen"]


@dataclass(frozen=True, kw_only=True)
class Widen(Combiner):
    """Disentangle each column of a weight into magnitude and direction, and rank the columns by the change of both.

    Per model the columns of a 2-D weight [out, in] are ranked by |‖W[:,j]‖ − ‖W₀[:,j]‖| and by the angle between W[:,j]
    and W₀[:,j] (1 − cos), ranks being 0, 1/n, …, (n−1)/n. The score of a column is the softmax of its ranks over the
    models, or `score` where its rank exceeds `ratio` times the average rank; θ = θ₀ + Σ sᵢⱼτᵢ[:,j] with s the mean of
    both scores. So columns that changed more than average are added in full. In 1-D tensors |τ| itself stands in for
    the rank, per entry.

    Columns of an embedding are its tokens. Tensors of more dimensions, which the authors do not treat, are matrices of
    all their dimensions after the first. A column that is zero in both models has not turned.

    Paper: Yu et al., "Extend Model Merging from Fine-Tuned to Pre-Trained Large Language Models via Weight
    Disentanglement", 2024, arXiv 2408.03092.
    """

    name: ClassVar[str] = "widen"
    summary: ClassVar[str] = "weigh input columns by how much magnitude and direction have changed"
    formula: ClassVar[str] = "θ₀ + Σ ½(s_magnitude + s_direction) ⊙ τᵢ per column"
    paper: ClassVar[Paper | None] = Paper(
        "Extend Model Merging from Fine-Tuned to Pre-Trained Large Language Models via Weight Disentanglement",
        "Yu et al.",
        2024,
        "2408.03092",
        "yule-BUAA/MergeLLM",
    )
    weighted: ClassVar[bool] = False
    temporaries: ClassVar[tuple[float, float]] = (6.0, 0.0)

    ratio: Annotated[NonNegative, Doc("how far above the average a rank must be for the fixed score")] = 1.0
    score: Annotated[NonNegative, Doc("score of what changed more than that")] = 1.0

    def unit(self, subject: Subject) -> Unit:
        """Ranks run over all columns, averages over all entries."""
        return "tensor"

    def merge(self, group: Group) -> Tensor:
        """Score the columns, or the entries of a vector; add the weighted updates."""
        if group.origin.ndim < 2:
            scores = self._scores([delta.abs() for delta in group.deltas])
            return group.origin + sum(s * d for s, d in zip(scores, group.deltas, strict=True))
        transposed = group.role.kind == "embedding" and group.origin.ndim == 2
        base, *experts = (_columns(value, transposed) for value in (group.origin, *group.experts))
        changes = [_changes(expert, base) for expert in experts]
        magnitude = self._scores([_ranks(change) for change, _ in changes])
        direction = self._scores([_ranks(change) for _, change in changes])
        total = torch.zeros_like(base)
        for expert, m, d in zip(experts, magnitude, direction, strict=True):
            total.addcmul_(expert - base, (0.5 * (m + d)).to(base.dtype))
        return group.origin + (total.mT if transposed else total).reshape(group.origin.shape)

    def _scores(self, values: list[Float[Tensor, "*n"]]) -> Float[Tensor, " models *n"]:
        stacked = torch.stack(values)
        average = stacked.reshape(len(values), -1).mean(dim=1, dtype=torch.float64).to(stacked.dtype)
        limit = self.ratio * average.reshape(-1, *(1,) * (stacked.ndim - 1))
        return torch.where(stacked > limit, self.score, stacked.softmax(dim=0))


def _columns(value: Tensor, transposed: bool) -> Float[Tensor, "out in"]:
    matrix = value.reshape(value.shape[0], -1)
    return matrix.mT if transposed else matrix


def _norm(matrix: Float[Tensor, "out in"]) -> Float[Tensor, " in"]:
    return torch.linalg.vector_norm(matrix, dim=0, dtype=torch.float64)


def _changes(
    expert: Float[Tensor, "out in"], base: Float[Tensor, "out in"]
) -> tuple[Float[Tensor, " in"], Float[Tensor, " in"]]:
    """Per column: the change of its norm, and 1 − cos of the angle it has turned by.

    1 − cos of two nearly parallel columns is a difference in the eighth digit, hence float64: as half the squared
    distance of the unit columns it keeps its own digits.
    """
    ours, theirs = _norm(expert), _norm(base)
    unit = torch.where(ours > 0, expert.double() / ours, 0.0) - torch.where(theirs > 0, base.double() / theirs, 0.0)
    turned = 0.5 * unit.square().sum(dim=0)
    # a column that appears or vanishes stands at a right angle; its unit vectors are one step apart
    return (ours - theirs).abs(), torch.where((ours > 0) == (theirs > 0), turned, 1.0)


def _ranks(change: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Position of each column in ascending order over their number; equal ones in the order of the columns."""
    order = torch.argsort(change, stable=True)
    ranks = torch.empty_like(change)
    ranks[order] = torch.arange(change.numel(), dtype=change.dtype, device=change.device) / change.numel()
    return ranks
