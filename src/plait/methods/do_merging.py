"""DO-Merging: make adapters orthogonal to each other, then merge magnitudes and directions apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._low_rank import LowRankCombiner
from plait.methods._parameters import Doc, NonNegative, NonNegativeInt, Real
from plait.tensors.descent import adam
from plait.tensors.lowrank import LowRank

__all__ = ["DoMerging"]


@dataclass(frozen=True, kw_only=True)
class DoMerging(LowRankCombiner):
    """Decouple and orthogonalise: Δ = M̄ ∘ V̄ with column norms M and directions V of the adapters' changes.

    1. Orthogonalise, by a data-free descent on small corrections: minimise Σ_{i≠j} ‖Âᵢ Âⱼᵀ‖² + γ Σ ‖δAᵢ‖² with
       Âᵢ = Aᵢ + δAᵢ, and the same for B; factors are scaled to length 1 for it.
    2. Decouple: Mᵢ = the norm of each column (input) of B̂ᵢÂᵢ, Vᵢ = B̂ᵢÂᵢ / Mᵢ.
    3. Merge apart: M̄ = mean Mᵢ, V̄ = λ · mean wᵢVᵢ; Δ = V̄ diag(M̄).

    An adapter of larger magnitude then no longer decides the direction. The result is a concatenation of the adapters'
    factors, so that it keeps Σ rᵢ ranks. The authors search λ between 0.1 and 1 times the number of adapters.

    No code was published; the orientation of the pair term, its squares and the descent's defaults are choices.

    Paper: Zheng et al., "Decouple and Orthogonalize: A Data-Free Framework for LoRA Merging", 2025, arXiv 2505.15875.
    """

    name: ClassVar[str] = "do_merging"
    summary: ClassVar[str] = "adapters made orthogonal, their magnitudes and directions merged apart"
    formula: ClassVar[str] = "θ₀ + λ · mean(wᵢVᵢ) diag(mean Mᵢ)"
    paper: ClassVar[Paper | None] = Paper(
        "Decouple and Orthogonalize: A Data-Free Framework for LoRA Merging", "Zheng et al.", 2025, "2505.15875"
    )
    cost: ClassVar[Any] = "iterative"

    lambda_: Annotated[Real, Doc("scale of the merged directions")] = 1.0
    orthogonalize: Annotated[bool, Doc("correct the factors first")] = True
    decouple: Annotated[bool, Doc("merge magnitudes and directions apart, instead of the changes")] = True
    steps: Annotated[NonNegativeInt, Doc("steps of the descent")] = 100
    rate: Annotated[NonNegative, Doc("step size, relative to the entries' root mean square")] = 0.01
    gamma: Annotated[NonNegative, Doc("how strongly corrections are held back")] = 1.0

    def update(self, group: Group) -> LowRank:
        """Orthogonalise, decouple, merge."""
        assert group.low_rank is not None
        chosen = [(p.balanced(), w) for p, w in zip(group.low_rank, group.weights, strict=True) if p.rank]
        parts, weights = [part for part, _ in chosen], [weight for _, weight in chosen]
        if self.orthogonalize and len(parts) > 1:
            rows = self._apart([part.a for part in parts])
            columns = self._apart([part.b.mT for part in parts])
            parts = [LowRank(b.mT, a) for a, b in zip(rows, columns, strict=True)]
        share = self.lambda_ / group.count
        rights = [part.a for part in parts]
        if self.decouple:
            norms = [_column_norms(part) for part in parts]
            mean = torch.stack(norms).sum(dim=0) / group.count
            rights = [
                part.a * torch.where(norm > 0, mean / norm, 0.0).nan_to_num(0.0, 0.0, 0.0)
                for part, norm in zip(parts, norms, strict=True)
            ]
        lefts = [part.b * (share * weight) for part, weight in zip(parts, weights, strict=True)]
        return LowRank(torch.cat(lefts, dim=1), torch.cat(rights))

    def _apart(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Corrected factors, of rows in one space."""
        sizes = [float(torch.linalg.vector_norm(f, dtype=torch.float64)) or 1.0 for f in factors]
        start = torch.cat([f.double() / size for f, size in zip(factors, sizes, strict=True)])
        ranks = [f.shape[0] for f in factors]

        def slope(now: Tensor) -> Tensor:
            gram = now @ now.mT
            for block, rank in zip(_corners(ranks), ranks, strict=True):
                gram[block : block + rank, block : block + rank] = 0.0
            return 4 * gram @ now + 2 * self.gamma * (now - start)

        size = self.rate * len(factors) ** 0.5 / start.numel() ** 0.5
        found = adam(start.clone(), slope, self.steps, size).split(ranks)
        return [(f * size).to(factors[0].dtype) for f, size in zip(found, sizes, strict=True)]


def _corners(ranks: Sequence[int]) -> list[int]:
    return [sum(ranks[:i]) for i in range(len(ranks))]


def _column_norms(part: LowRank) -> Tensor:
    """The norm of every column of B A, from the small matrix BᵀB."""
    inner = part.b.double().mT @ part.b.double()
    wide = part.a.double()
    return (wide * (inner @ wide)).sum(dim=0).clamp_min(0.0).sqrt().to(part.a.dtype)
