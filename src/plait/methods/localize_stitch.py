"""Localize-and-Stitch without data: stitch together the small regions that changed most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Scope
from plait.methods._order import ROUNDS, Wanted, order_statistics, survey_order
from plait.methods._parameters import Density, Doc, PerExpert
from plait.methods._trim import per_expert

__all__ = ["LocalizeStitch"]


@dataclass(frozen=True, kw_only=True)
class LocalizeStitch(Combiner):
    """Localise each skill in the few entries that changed most, then add these; where several meet, their mean.

    γᵢ = [|τᵢ| > the int(density·n)-th largest magnitude of the whole model], strictly; θ = θ₀ + Σ γᵢτᵢ / Σ γⱼ.
    No coefficient is needed, because the regions hardly overlap. This is the authors' dataless version: with data they
    train the masks γᵢ. They use 0.1 for vision and 0.05 for language models, whose embeddings, last norm and head stay
    at the base: say so with `copy` rules.

    Paper: He et al., "Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic", TMLR 2025,
    arXiv 2408.13656.
    """

    name: ClassVar[str] = "localize_stitch"
    summary: ClassVar[str] = "add the few entries that changed most; where several experts meet, their mean"
    formula: ClassVar[str] = "θ₀ + Σ γᵢτᵢ / Σ γⱼ, γᵢ = [|τᵢ| among the model's largest]"
    paper: ClassVar[Paper | None] = Paper(
        "Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic",
        "He et al.",
        2025,
        "2408.13656",
        "uiuctml/Localize-and-Stitch",
    )
    weighted: ClassVar[bool] = False
    identity: ClassVar[Any] = {"density": 1.0}
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (3.0, 2.5)

    density: Annotated[Density | tuple[float, ...], PerExpert(), Doc("fraction of entries of each expert's region")] = (
        0.1
    )
    scope: Annotated[Literal["model", "tensor"], Doc("what the fraction is counted over")] = "model"

    @property
    def rounds(self) -> int:
        """Two for the thresholds."""
        return ROUNDS

    @property
    def survey_scope(self) -> Scope:
        """What the fraction is counted over."""
        return "model" if self.scope == "model" else "tensor"

    @property
    def constant(self) -> frozenset[str]:
        """One threshold per expert and scope."""
        return frozenset({"density"})

    def _rank(self, group: Group) -> Wanted:
        densities = per_expert(self.density, group.count)

        def ranks(expert: int, n: int) -> tuple[int]:
            return (max(int(densities[expert] * n), 1),)

        return ranks

    def survey(self, group: Group) -> Any:
        """Counts of magnitudes."""
        return survey_order([delta.abs() for delta in group.deltas], group.facts, self._rank(group))

    def merge(self, group: Group) -> Tensor:
        """Mask, add, divide by the number of regions that meet."""
        limits = order_statistics(group.facts, self._rank(group))
        total = torch.zeros_like(group.deltas[0])
        count = torch.zeros_like(total)
        densities = per_expert(self.density, group.count)
        for delta, (limit,), density in zip(group.deltas, limits, densities, strict=True):
            # a region of everything leaves out nothing, not even the entry at the threshold
            region = delta.abs().to(torch.float32) > (limit if density < 1 else 0.0)
            total += delta * region
            count += region
        return group.origin + total / count.clamp(min=1)
