"""RAM: keep what one agent alone has learned, average what several have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Scope
from plait.methods._parameters import Density, Doc, NonNegative, Real
from plait.methods._trim import ROUNDS, survey_thresholds, thresholds, trim
from plait.tensors.consensus import disjoint_merge, elect
from plait.tensors.sums import Each
from plait.tensors.sums import count as number

__all__ = ["COMPOSITIONS", "Ram"]

#: RAM+ with the authors' example, and mergekit's "RAM+ tensor-local"
COMPOSITIONS = {
    "ram_plus": (("ram", {"r": 1.2}),),
    "ramplus_tl": (("ram", {"r": 1.1, "limit": 0.2, "scope": "tensor"}),),
}


@dataclass(frozen=True, kw_only=True)
class Ram(Combiner):
    """Add what only one expert changed in full, and average what several changed over those who did.

    aᵢ = [|τᵢ| > ε], c = Σ aᵢ: an entry with c ≥ 2 is shared and becomes Σ aᵢτᵢ/c; one with c = 1 is unique and becomes
    λᵢτᵢ; the rest stays at the base. RAM has λ = 1. RAM+ amplifies the unique entries of an expert that shares many:
    λᵢ = 1 + (r − 1) · min(limit, Sᵢ/Uᵢ), with Sᵢ shared and Uᵢ unique entries over the model.

    The authors' first version, arm-r, has `ratio: active`, Sᵢ/(Sᵢ + Uᵢ). `shared: ties` (their arm-ties, with
    `scope: tensor`) trims the shared entries of each expert, elects a sign and averages those who agree. mergekit's
    ramplus_tl with its r is `r: 1 + r, limit: alpha, scope: tensor`. Only checkpoints whose untouched entries are
    exactly the base's (reinforcement learning in bfloat16) have many unique entries; elsewhere this is an average.

    Paper: Yuan et al., "Behavior Knowledge Merge in Reinforced Agentic Models", 2026, arXiv 2601.13572.
    """

    name: ClassVar[str] = "ram"
    summary: ClassVar[str] = "keep in full what one expert alone changed, average what several changed"
    formula: ClassVar[str] = "θ₀ + Σ aᵢτᵢ/c where c ≥ 2, λᵢτᵢ where c = 1; aᵢ = [|τᵢ| > ε], c = Σ aᵢ"
    paper: ClassVar[Paper | None] = Paper(
        "Behavior Knowledge Merge in Reinforced Agentic Models", "Yuan et al.", 2026, "2601.13572", "xiangchi-yuan/mrl"
    )
    weighted: ClassVar[bool] = False
    identity: ClassVar[Any] = {"epsilon": 0.0}
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (6.0, 1.5)

    epsilon: Annotated[NonNegative, Doc("a change up to this size is none")] = 1e-5
    r: Annotated[Real, Doc("largest factor on unique entries; 1 is RAM, the authors' RAM+ has 1.2")] = 1.0
    limit: Annotated[NonNegative, Doc("the ratio of shared to unique entries counts up to this")] = 1.0
    ratio: Annotated[Literal["unique", "active"], Doc("shared entries per unique one, or per changed one")] = "unique"
    shared: Annotated[Literal["mean", "ties"], Doc("average shared entries, or trim, elect and merge them")] = "mean"
    density: Annotated[Density, Doc("fraction of shared entries each expert keeps with shared: ties")] = 0.1
    scope: Annotated[Literal["model", "tensor"], Doc("what entries are counted over")] = "model"

    @property
    def _counting(self) -> int:
        return int(self.r != 1.0)

    @property
    def rounds(self) -> int:
        """One for the ratios, two for the thresholds, each only where it is needed."""
        return self._counting + (ROUNDS if self.shared == "ties" else 0)

    @property
    def survey_scope(self) -> Scope:
        """What entries are counted over."""
        return "model" if self.scope == "model" else "tensor"

    @property
    def constant(self) -> frozenset[str]:
        """Entries are counted, and trimmed, with one rule over the scope."""
        return frozenset({"epsilon", "r", "density"})

    def _active(self, group: Group) -> tuple[list[Tensor], Tensor]:
        active = [delta.abs() > self.epsilon for delta in group.deltas]
        count = torch.zeros_like(active[0], dtype=torch.int32)
        for mask in active:
            count += mask
        return active, count

    def survey(self, group: Group) -> Any:
        """How many changed entries are shared, of how many; then counts of the shared magnitudes."""
        active, count = self._active(group)
        if len(group.facts) < self._counting:
            return Each(tuple(Each((number(mask & (count > 1)), number(mask))) for mask in active))
        shared = [delta[count > 1] for delta in group.deltas]
        return survey_thresholds(shared, group.facts[self._counting :], [self.density] * group.count, "mask_rate")

    def _factor(self, group: Group, expert: int) -> float:
        if not self._counting:
            return 1.0
        shared, active = group.facts[0][expert].items
        others = active if self.ratio == "active" else active - shared
        # without unique entries there is nothing to scale
        return 1.0 + (self.r - 1.0) * min(self.limit, shared / others if others else 0.0)

    def merge(self, group: Group) -> Tensor:
        """Average shared entries, scale unique ones."""
        active, count = self._active(group)
        total = torch.zeros_like(group.deltas[0])
        for i, (delta, mask) in enumerate(zip(group.deltas, active, strict=True)):
            factor = torch.where(count == 1, self._factor(group, i), 1.0)
            total += delta * mask * factor
        if self.shared == "mean":
            return group.origin + total / count.clamp(min=1)
        return group.origin + torch.where(count > 1, self._elected(group, count > 1), total)

    def _elected(self, group: Group, where: Tensor) -> Tensor:
        facts = group.facts[self._counting :]
        if not facts[0][0].total:
            return torch.zeros_like(group.deltas[0])
        kept = trim([d * where for d in group.deltas], thresholds(facts, [self.density] * group.count, "mask_rate"))
        return disjoint_merge(kept, elect(kept), [1.0] * group.count)
