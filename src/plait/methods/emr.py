"""EMR-Merging's unified task vector: elect a sign per entry, keep the largest change that has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper
from plait.methods._parameters import Doc, Real
from plait.tensors.consensus import disjoint_merge, elect

__all__ = ["Emr"]


@dataclass(frozen=True, kw_only=True)
class Emr(Combiner):
    """Elect one sign per entry and keep the largest magnitude among the experts that have it.

    γ = sign(Σ τᵢ), a sum of zero counting as −; θ = θ₀ + λ · γ · max |τᵢ| over the i with sign τᵢ = γ (0 where there is
    none). This is the one model that EMR-Merging shares between its tasks; the paper's masks and rescalers, which turn
    it back into a model per task, make a family of models.

    Paper: Huang et al., "EMR-Merging: Tuning-Free High-Performance Model Merging", NeurIPS 2024, arXiv 2405.17461.
    """

    name: ClassVar[str] = "emr"
    summary: ClassVar[str] = "elect a sign per entry, keep the largest change that has it (EMR's unified model)"
    formula: ClassVar[str] = "θ₀ + λ · γ · max{|τᵢ| : sign τᵢ = γ}, γ = sign(Σ τᵢ)"
    paper: ClassVar[Paper | None] = Paper(
        "EMR-Merging: Tuning-Free High-Performance Model Merging",
        "Huang et al.",
        2024,
        "2405.17461",
        "harveyhuang18/EMR_Merging",
    )
    weighted: ClassVar[bool] = False
    temporaries: ClassVar[tuple[float, float]] = (6.0, 1.0)

    lambda_: Annotated[Real, Doc("scale of the unified task vector")] = 1.0

    def merge(self, group: Group) -> Tensor:
        """Elect, take the largest, scale once, add to the base."""
        sign = elect(group.deltas)
        sign = torch.where(sign == 0, -1.0, sign)
        unified = disjoint_merge(group.deltas, sign, group.weights, "max")
        return group.origin + self.lambda_ * unified
