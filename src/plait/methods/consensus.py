"""Consensus Merging: keep only what TALL-masks find important for several tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from plait.methods._contract import Group, Modifier, Paper
from plait.methods._parameters import Doc, NonNegative, NonNegativeInt, PerExpert, Real
from plait.methods._trim import per_expert

__all__ = ["COMPOSITIONS", "Consensus"]

#: the paper's two: behind the plain sum, and behind TIES with the sum of those who agree
COMPOSITIONS = {
    "consensus_ta": ("task_arithmetic", "consensus"),
    "consensus_ties": (("ties", {"combine": "sum"}), "consensus"),
}


@dataclass(frozen=True, kw_only=True)
class Consensus(Modifier):
    """Drop from a merged task vector what matters to fewer than `agreement` tasks.

    With τ the merged task vector of the method in front, mₜ = [|θ₀ − θₜ| > threshold · |θ₀ + τ − θₜ|] marks where τ
    leads the base towards task t; θ = θ₀ + α · τ ⊙ [Σₜ mₜ ≥ agreement]. Agreement 2 drops entries that serve nobody or
    one task alone; 0 keeps everything.

    The authors choose the threshold for each task from 0.2, 0.3, …, 0.6 and α from 0.1, 0.2, …, 1.0 on validation data.
    The masks themselves, which turn τ back into one model per task, make a compressed family of models.

    Paper: Wang et al., "Localizing Task Information for Improved Model Merging and Compression", ICML 2024,
    arXiv 2405.07813.
    """

    name: ClassVar[str] = "consensus"
    summary: ClassVar[str] = "drop from the merged task vector what serves fewer than two tasks"
    formula: ClassVar[str] = "θ₀ + α · τ ⊙ [Σₜ mₜ ≥ k], mₜ = [|θ₀ − θₜ| > threshold · |θ₀ + τ − θₜ|]"
    paper: ClassVar[Paper | None] = Paper(
        "Localizing Task Information for Improved Model Merging and Compression",
        "Wang et al.",
        2024,
        "2405.07813",
        "nik-dim/tall_masks",
    )
    identity: ClassVar[Any] = {"agreement": 0}
    temporaries: ClassVar[tuple[float, float]] = (4.0, 1.0)

    agreement: Annotated[NonNegativeInt, Doc("how many tasks an entry must matter to")] = 2
    threshold: Annotated[
        NonNegative | tuple[float, ...], PerExpert(), Doc("an entry matters to a task above this; the paper's λₜ")
    ] = 0.4
    alpha: Annotated[Real, Doc("scale of what is kept")] = 1.0

    def adjust(self, group: Group) -> Tensor:
        """Count the tasks an entry matters to, drop, scale."""
        assert group.merged is not None
        count = torch.zeros_like(group.merged, dtype=torch.int32)
        for expert, limit in zip(group.experts, per_expert(self.threshold, group.count), strict=True):
            count += (group.origin - expert).abs() > limit * (group.merged - expert).abs()
        return group.origin + self.alpha * (group.merged - group.origin) * (count >= self.agreement)
