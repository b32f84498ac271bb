"""Singular value calibration: undo the repeated counting of what several experts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Group, Modifier, Paper, Subject, Unit
from plait.methods._parameters import Bounds, Doc

__all__ = ["Svc"]


@dataclass(frozen=True, kw_only=True)
class Svc(Modifier):
    """Shrink the singular values of any merged task vector where the experts' shares of them add up to too much.

    merged − θ₀ = U diag(s) V; with aᵣ = uᵣᵀ(merged − θ₀) and aᵣᵢ = uᵣᵀτᵢ: sᵣᵢ = ⟨aᵣ, aᵣᵢ⟩ / ‖aᵣᵢ‖²,
    γᵣ = T / Σᵢ max(α, sᵣᵢ); θ = θ₀ + U diag(γ ⊙ s) V.

    sᵣᵢ > 1 means that the merged model goes further than expert i along uᵣ: knowledge they share was counted several
    times. α = 0.1 behind task arithmetic, 1 behind TSV-Merge or WUDI. In float64. Matrices only; embeddings and head
    stay as they are unless asked (their factorisation costs minutes).

    Paper: Li et al., "When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging", ICML 2026,
    arXiv 2602.05536.
    """

    name: ClassVar[str] = "svc"
    summary: ClassVar[str] = "calibrate singular values of the merged task vector against the experts'"
    formula: ClassVar[str] = "θ₀ + U diag(γ ⊙ s) V, γᵣ = T / Σᵢ max(α, sᵣᵢ)"
    paper: ClassVar[Paper | None] = Paper(
        "When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging",
        "Li et al.",
        2026,
        "2602.05536",
        "lyymuwu/SVC",
    )
    identity: ClassVar[Any] = {}
    cost: ClassVar[Any] = "spectral"
    temporaries: ClassVar[tuple[float, float]] = (14.0, 0.5)

    alpha: Annotated[float, Bounds(gt=0), Doc("smallest projection that counts; 1 never amplifies")] = 0.1
    embeddings: Annotated[Literal["spectral", "keep"], Doc("whether embedding matrices are calibrated")] = "keep"
    head: Annotated[Literal["spectral", "keep"], Doc("whether the output head's matrix is calibrated")] = "keep"

    def _applies(self, subject: Subject) -> bool:
        kinds = {"embedding": self.embeddings, "head": self.head}
        return len(subject.shape) == 2 and subject.numel > 0 and kinds.get(subject.role.kind, "spectral") == "spectral"

    def unit(self, subject: Subject) -> Unit:
        """Matrices are seen whole."""
        return "tensor" if self._applies(subject) else "element"

    def adjust(self, group: Group) -> Tensor:
        """Project every expert on the merged directions and rescale these."""
        assert group.merged is not None
        if not self._applies(group.subject):
            return group.merged
        u, s, vh = group.factor((group.merged - group.origin).double())
        total = torch.zeros_like(s)
        for delta in group.deltas:
            own = u.mT @ delta.double()  # (r, n): row r is aᵣᵢ
            # aᵣ = sᵣ vᵣ, so that its inner products need no product with the merged matrix again
            along = s * (own * vh).sum(dim=1) / own.square().sum(dim=1).clamp_min(1e-12)
            total += along.clamp_min(self.alpha)
        return group.origin + ((u * (s * group.count / total)) @ vh).to(group.origin.dtype)
