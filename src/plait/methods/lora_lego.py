"""LoRA-LEGO: take adapters apart into their ranks, cluster these, and build one adapter of the clusters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from plait.methods._contract import Group, Paper
from plait.methods._low_rank import LowRankCombiner
from plait.methods._parameters import Doc, NonNegative, PositiveInt
from plait.tensors.clusters import k_means
from plait.tensors.lowrank import LowRank

__all__ = ["LoraLego"]


@dataclass(frozen=True, kw_only=True)
class LoraLego(LowRankCombiner):
    """Cluster the minimal semantic units of all adapters of a module: the pairs (row of A, column of B) of each rank.

    uⱼ = [aⱼ; bⱼ] of all adapters → k-means into k clusters; a cluster's centre c is rescaled to the mean length of its
    members, c̃ = c · mean‖uⱼ‖/‖c‖, since averaging shortens; B A = √(r/k) Σ b̃ ãᵀ, r the largest rank of the adapters.

    Ranks may differ. k = Σ rᵢ is the sum of all adapters, of one adapter k < r is pruning. A unit's scale may lie in a
    or in b; `balance` makes both equally long before they are compared. Weights scale both sides by √|wᵢ|.

    The authors published no code: the output scale is read from summaries of the paper, and is a parameter.

    Paper: Zhao et al., "Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes Through Rank-Wise
    Clustering", ICLR 2025, arXiv 2409.16167.
    """

    name: ClassVar[str] = "lora_lego"
    summary: ClassVar[str] = "adapters of any ranks, clustered rank by rank into one adapter"
    formula: ClassVar[str] = "√(r/k) Σ b̃ ãᵀ over k clusters of all (aⱼ, bⱼ)"
    paper: ClassVar[Paper | None] = Paper(
        "Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes Through Rank-Wise Clustering",
        "Zhao et al.",
        2025,
        "2409.16167",
    )

    rank: Annotated[PositiveInt | None, Doc("number of clusters: the rank of the result; none: the largest")] = None
    balance: Annotated[bool, Doc("make a and b of each unit equally long before clustering")] = False
    output: Annotated[NonNegative | None, Doc("scale of the result; none: √(r/k)")] = None

    @property
    def random(self) -> bool:
        """The first centres are drawn."""
        return True

    def update(self, group: Group) -> LowRank:
        """Take apart, cluster, rescale, build."""
        assert group.low_rank is not None
        parts = [part.balanced() if self.balance else part for part in group.low_rank]
        units = []
        for part, weight in zip(parts, group.weights, strict=True):
            root = math.sqrt(abs(weight))
            units.append(torch.cat([part.a * root, part.b.mT * math.copysign(root, weight)], dim=1))
        pool = torch.cat(units)
        pool = pool[pool.norm(dim=1) > 0]
        largest = max(part.rank for part in parts)
        count = min(self.rank or largest, pool.shape[0])
        draws = group.draws.uniform("clusters", 0, 16 * max(count, 1)).view(16, -1)
        owners = k_means(pool, count, draws)
        width = group.low_rank[0].shape[1]
        centres = []
        for cluster in range(count):
            members = pool[owners == cluster]
            centre = members.mean(dim=0)
            length = float(centre.norm())
            # opposite members cancel: such a centre says nothing, and no length can be given back to it
            centres.append(centre * (float(members.norm(dim=1).mean()) / length if length > 1e-12 else 0.0))
        merged = torch.stack(centres) if centres else pool.new_zeros(0, pool.shape[1])
        scale = math.sqrt(largest / max(count, 1)) if self.output is None else self.output
        return LowRank((merged[:, width:] * scale).mT.contiguous(), merged[:, :width].contiguous())
