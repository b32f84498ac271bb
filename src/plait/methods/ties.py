"""TIES-Merging: trim, elect sign, merge those who agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Scope, Subject, Unit
from plait.methods._parameters import Density, Doc, PerExpert, Real
from plait.methods._trim import (
    ROUNDS,
    l1_factors,
    l1_sums,
    per_expert,
    survey_thresholds,
    thresholds,
    trim,
    trim_rows,
)
from plait.tensors.consensus import disjoint_merge, elect
from plait.tensors.sums import Each, count

__all__ = ["Ties"]


@dataclass(frozen=True, kw_only=True)
class Ties(Combiner):
    """Resolve interference by trimming small changes and electing one sign per entry.

    τ̂ᵢ = the largest `density` of |τᵢ|, over the whole model; s = sign(Σ wᵢτ̂ᵢ);
    θ = θ₀ + λ · Σ wᵢτ̂ᵢ[sign = s] / Σ wᵢ[sign = s].

    `trim` says which entry is the last one kept of n: `inclusive` (the authors) the (n − int(n·density))-th smallest,
    `mask_rate` (MergeLM) the int(n·(1 − density))-th smallest, `exact` (mergekit) the int(n·density)-th largest.
    Entries that equal the threshold are kept together.

    Defaults are the authors'. mergekit's variant is `scope: tensor, trim: exact, zero_sign: positive`; MergeLM's is
    `trim: mask_rate`; MergeLLM's `scope: tensor, trim: mask_rate`.

    Paper: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023, arXiv 2306.01708.
    """

    name: ClassVar[str] = "ties"
    summary: ClassVar[str] = "trim small changes, elect one sign per entry, merge those who agree"
    formula: ClassVar[str] = "θ₀ + λ · mean of the trimmed τᵢ that have the elected sign"
    paper: ClassVar[Paper | None] = Paper(
        "TIES-Merging: Resolving Interference When Merging Models",
        "Yadav et al.",
        2023,
        "2306.01708",
        "prateeky2806/ties-merging",
    )
    identity: ClassVar[Any] = {"density": 1.0}
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (6.5, 2.5)

    density: Annotated[Density | tuple[float, ...], PerExpert(), Doc("fraction of entries each expert keeps")] = 0.2
    lambda_: Annotated[Real, Doc("scale of the merged task vector")] = 1.0
    scope: Annotated[Literal["model", "tensor", "row"], Doc("what the kept fraction is counted over")] = "model"
    trim: Annotated[Literal["inclusive", "mask_rate", "exact"], Doc("how density becomes a rank, see above")] = (
        "inclusive"
    )
    vote: Annotated[Literal["mass", "frequency"], Doc("elect by summed values or by counted signs")] = "mass"
    zero_sign: Annotated[
        Literal["majority", "positive"], Doc("sign of an entry whose votes cancel: the scope's majority, or +")
    ] = "majority"
    combine: Annotated[Literal["mean", "sum", "max"], Doc("how agreeing entries are combined")] = "mean"
    rescale: Annotated[Literal["none", "l1"], Doc("scale each trimmed tensor back to its L1 norm")] = "none"

    @property
    def rounds(self) -> int:
        """Two for the thresholds, one for L1 norms, one for the majority sign: each only where it is needed."""
        return self._before_sign + (self.zero_sign == "majority" and self.scope != "row")

    @property
    def _counting(self) -> int:
        return 0 if self.scope == "row" or self.density == 1.0 else ROUNDS

    @property
    def _before_sign(self) -> int:
        return self._counting + (self.rescale == "l1")

    @property
    def survey_scope(self) -> Scope:
        """The trimming scope."""
        return "model" if self.scope == "model" else "tensor"

    @property
    def constant(self) -> frozenset[str]:
        """One threshold per expert and scope, hence one density."""
        return frozenset({"density"})

    def unit(self, subject: Subject) -> Unit:
        """Rows are trimmed whole; everything else is elementwise once the thresholds are known."""
        return "row" if self.scope == "row" else "element"

    def _trimmed(self, group: Group) -> Sequence[Tensor]:
        densities = per_expert(self.density, group.count)
        if self.scope == "row":
            return trim_rows(group.deltas, densities, self.trim)
        if self._counting:
            return trim(group.deltas, thresholds(group.facts, densities, self.trim))
        return group.deltas

    def _votes(self, group: Group) -> tuple[Tensor, ...]:
        """The trimmed deltas, rescaled and weighted."""
        factors = l1_factors(group.facts[self._counting]) if self.rescale == "l1" else (1.0,) * group.count
        scales = [factor * weight for factor, weight in zip(factors, group.weights, strict=True)]
        return tuple(delta * scale for delta, scale in zip(self._trimmed(group), scales, strict=True))

    def survey(self, group: Group) -> Any:
        """Counts for the thresholds, then L1 norms, then elected signs."""
        done = len(group.facts)
        if done < self._counting:
            return survey_thresholds(group.deltas, group.facts, per_expert(self.density, group.count), self.trim)
        if done < self._before_sign:
            return l1_sums(group.deltas, self._trimmed(group))
        sign = elect(self._votes(group), self.vote)
        return Each((count(sign > 0), count(sign < 0)))

    def merge(self, group: Group) -> Tensor:
        """Trim, elect, merge."""
        votes = self._votes(group)
        sign = elect(votes, self.vote)
        if self.zero_sign == "positive":
            fallback: Tensor | float = 1.0
        elif self.scope == "row":
            fallback = sign.sum(dim=-1, keepdim=True).sign()
        else:
            positive, negative = group.facts[-1].items
            fallback = float((positive > negative) - (positive < negative))
        sign = sign + (sign == 0) * fallback
        return group.origin + self.lambda_ * disjoint_merge(votes, sign, group.weights, self.combine)
