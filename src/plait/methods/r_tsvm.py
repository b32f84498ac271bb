"""R-TSVM: TSV-Merge with weights from outliers and ranks from sparsity, for language models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._parameters import Doc, NonNegative
from plait.methods._spectral import SpectralCombiner, squared_norms, stacked, weighted_deltas
from plait.tensors.subspaces import combine_subspaces

__all__ = ["RTsvm"]

#: elements looked at at a time in float64
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RTsvm(SpectralCombiner):
    """Weigh experts by the mass of their outliers, share the rank by how densely they changed, then TSV-Merge.

    Per matrix, with Oᵢ the entries of |τᵢ| above mean + `deviations` · standard deviation:
    ωᵢ = T · Σ|τᵢ[Oᵢ]| / Σⱼ Σ|τⱼ[Oⱼ]| (1 where nobody has outliers);
    with cᵢ the number of entries above `negligible` times the experts' pooled root mean square:
    kᵢ = ⌊min(m, n) · cᵢ / Σⱼ cⱼ⌋, at least 1 (0 where ωᵢ = 0); then TSV-Merge of ωᵢτᵢ with kᵢ triplets each.

    Experimental: the authors' code is not public. That outliers decide the weights and sparsity the ranks is from the
    paper; the normalisation (equal experts reduce to TSV-Merge) and the form of both thresholds are this package's.

    Paper: Yang et al., "Mix Data or Merge Models? Balancing the Helpfulness, Honesty, and Harmlessness of Large
    Language Model via Model Merging", 2025, arXiv 2502.06876.
    """

    name: ClassVar[str] = "r_tsvm"
    summary: ClassVar[str] = "TSV-Merge, experts weighed by outliers and ranked by sparsity (experimental)"
    formula: ClassVar[str] = "TSV-Merge of ωᵢτᵢ with kᵢ triplets each"
    paper: ClassVar[Paper | None] = Paper(
        "Mix Data or Merge Models? Balancing the Helpfulness, Honesty, and Harmlessness of Large Language Model",
        "Yang et al.",
        2025,
        "2502.06876",
    )
    identity: ClassVar[Any] = {}

    deviations: Annotated[NonNegative, Doc("standard deviations above the mean |τ| at which outliers begin")] = 3.0
    negligible: Annotated[NonNegative, Doc("changes below this share of the experts' RMS count as none")] = 0.1

    def update(self, group: Group) -> Tensor:
        """Measure, weigh, and join the subspaces."""
        deltas = weighted_deltas(group)
        shares = self._shares(deltas)
        # what counts for nothing must not turn the others' directions
        ranks = [rank if share > 0 else 0 for rank, share in zip(self._ranks(deltas), shares, strict=True)]
        joined = stacked(group, ranks)
        for part, share in zip(joined.parts(), shares, strict=True):
            part.s.mul_(share)
        return combine_subspaces(joined)

    def _shares(self, deltas: Sequence[Tensor]) -> list[float]:
        """T · (outlier mass of one expert / outlier mass of all)."""
        masses = [self._outliers(deltas[i]) for i in range(len(deltas))]
        total = sum(masses)
        return [len(deltas) * mass / total if total > 0 else 1.0 for mass in masses]

    def _outliers(self, delta: Tensor) -> float:
        """Sum of the magnitudes above the limit, in float64, piece by piece."""
        pieces = delta.reshape(-1).split(_PIECE)
        mean = sum(float(piece.abs().sum(dtype=torch.float64)) for piece in pieces) / delta.numel()
        spread = sum(float((piece.abs().double() - mean).square().sum()) for piece in pieces) / delta.numel()
        limit = mean + self.deviations * math.sqrt(spread)
        total = 0.0
        for piece in pieces:
            size = piece.abs().double()
            total += float(size[size > limit].sum())
        return total

    def _ranks(self, deltas: Sequence[Tensor]) -> list[int]:
        """Ranks in proportion to the number of entries that moved; their sum fits into the matrix."""
        shape = deltas[0].shape
        limit = self.negligible * math.sqrt(sum(squared_norms(deltas)) / (len(deltas) * shape.numel()))
        counts = [int((deltas[i].abs() > limit).sum()) for i in range(len(deltas))]
        room = min(shape)
        return [max(1, room * count // max(sum(counts), 1)) for count in counts]
