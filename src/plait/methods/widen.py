"""WIDEN: weigh every input column by how much its magnitude and its direction have changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

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
    translates: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (8.0, 3.0)

    ratio: Annotated[NonNegative, Doc("how far above the average a rank must be for the fixed score")] = 1.0
    score: Annotated[NonNegative, Doc("score of what changed more than that")] = 1.0

    @property
    def rounds(self) -> int:
        """One round for the columns of a matrix, so that an embedding need not be held whole."""
        return 1

    def unit(self, subject: Subject) -> Unit:
        """Matrices go by rows once their columns are known; averages run over all entries of anything else."""
        return "row" if len(subject.shape) == 2 else "tensor"

    def survey(self, group: Group) -> Columns | Tokens | int:
        """What the columns of a matrix have in these rows; for an embedding, whose columns are rows, their changes."""
        if len(group.subject.shape) != 2:
            return 0
        if group.role.kind == "embedding":
            changes = [torch.stack(_changes(expert.mT, group.origin.mT)) for expert in group.experts]
            return Tokens({group.offset: torch.stack(changes)})
        base = group.origin.double()
        own = torch.stack([expert.double().square().sum(dim=0) for expert in group.experts])
        shared = torch.stack([(expert.double() * base).sum(dim=0) for expert in group.experts])
        return Columns(base.square().sum(dim=0), own, shared)

    def merge(self, group: Group) -> Tensor:
        """Score the columns, or the entries of a vector; add the weighted updates."""
        if len(group.subject.shape) == 2:
            shares = self._shares(group.facts[0])
            if group.role.kind == "embedding":
                first = group.offset // group.subject.row
                shares = shares[:, first : first + group.origin.shape[0], None]
            else:
                shares = shares[:, None, :]
            return _add(group.origin, group.deltas, shares)
        if group.origin.ndim < 2:
            return _add(group.origin, group.deltas, self._scores([delta.abs() for delta in group.deltas]))
        base, *experts = (value.reshape(value.shape[0], -1) for value in (group.origin, *group.experts))
        changes = torch.stack([torch.stack(_changes(expert, base)) for expert in experts])
        deltas = [expert - base for expert in experts]
        return _add(base, deltas, self._mean_score(changes)[:, None, :]).reshape(group.origin.shape)

    def _shares(self, known: Columns | Tokens) -> Float[Tensor, "models columns"]:
        """The shares of all columns; computed once per tensor, for all its blocks."""
        key = (self.ratio, self.score)
        if key not in known.shares:
            known.shares[key] = self._mean_score(known.changes())
        return known.shares[key]

    def _mean_score(self, changes: Float[Tensor, "models 2 columns"]) -> Float[Tensor, "models columns"]:
        magnitude, direction = (self._scores([_ranks(change) for change in changes[:, part]]) for part in (0, 1))
        return 0.5 * (magnitude + direction)

    def _scores(self, values: list[Float[Tensor, "*n"]]) -> Float[Tensor, " models *n"]:
        stacked = torch.stack(values)
        average = stacked.reshape(len(values), -1).mean(dim=1, dtype=torch.float64).to(stacked.dtype)
        limit = self.ratio * average.reshape(-1, *(1,) * (stacked.ndim - 1))
        return torch.where(stacked > limit, self.score, stacked.softmax(dim=0))


@dataclass(frozen=True, eq=False)
class Columns:
    """‖W₀[:,j]‖², ‖W[:,j]‖² and ⟨W[:,j], W₀[:,j]⟩ of every column, in float64, over the rows seen so far."""

    base: Float[Tensor, " columns"]
    own: Float[Tensor, "models columns"]
    shared: Float[Tensor, "models columns"]
    shares: dict[tuple[float, float], Tensor] = field(default_factory=dict)

    def __add__(self, other: Columns) -> Columns:
        return Columns(self.base + other.base, self.own + other.own, self.shared + other.shared)

    def changes(self) -> Float[Tensor, "models 2 columns"]:
        """Per column: the change of its norm, and 1 − cos of the angle it has turned by."""
        ours, theirs = self.own.sqrt(), self.base.sqrt()
        size = (self.own * self.base).sqrt()  # of an unchanged column this is exactly the shared sum: it has not turned
        cosine = torch.where(size > 0, self.shared / size, ((ours > 0) == (theirs > 0)).double())
        return torch.stack([(ours - theirs).abs(), (1.0 - cosine).clamp_min(0.0)], dim=1)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The changes of an embedding's tokens: flat offset of a block of rows → (models, 2, rows)."""

    blocks: Mapping[int, Tensor]
    shares: dict[tuple[float, float], Tensor] = field(default_factory=dict)

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens({**self.blocks, **other.blocks})

    def changes(self) -> Float[Tensor, "models 2 columns"]:
        """All tokens, in order."""
        return torch.cat([self.blocks[offset] for offset in sorted(self.blocks)], dim=-1)


def _add(base: Tensor, deltas: Sequence[Tensor], shares: Sequence[Tensor] | Tensor) -> Tensor:
    total = base.clone()
    for delta, share in zip(deltas, shares, strict=True):
        total.addcmul_(delta, share.to(base))
    return total


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
