"""Singular value calibration: undo the repeated counting of what several experts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Group, Modifier, Paper, Subject, Unit
from plait.methods._parameters import Bounds, Doc
from plait.methods._spectral import square_arrays
from plait.tensors.products import add_product, panels, times

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

    alpha: Annotated[float, Bounds(gt=0), Doc("smallest projection that counts; 1 never amplifies")] = 0.1
    embeddings: Annotated[Literal["spectral", "keep"], Doc("whether embedding matrices are calibrated")] = "keep"
    head: Annotated[Literal["spectral", "keep"], Doc("whether the output head's matrix is calibrated")] = "keep"

    def _applies(self, subject: Subject) -> bool:
        kinds = {"embedding": self.embeddings, "head": self.head}
        return len(subject.shape) == 2 and subject.numel > 0 and kinds.get(subject.role.kind, "spectral") == "spectral"

    def unit(self, subject: Subject) -> Unit:
        """Matrices are seen whole."""
        return "tensor" if self._applies(subject) else "element"

    def arrays(self, subject: Subject, experts: int) -> float:
        """The merged and the changed delta, and the Gram matrix's eigenvectors."""
        return square_arrays(subject, experts, (1.5, 0.0), 6.0, 0.0) if self._applies(subject) else 4.0 + experts

    def adjust(self, group: Group) -> Tensor:
        """Project every expert on the merged directions and rescale these."""
        assert group.merged is not None
        if not self._applies(group.subject):
            return group.merged
        change = group.merged - group.origin
        factors = group.factor(change)
        basis, squares, tall = factors.short, factors.s.square(), factors.tall
        scaled = times(basis.mT, factors.rows, factors.rows)  # sᵣvᵣ in rows; of a tall matrix sᵣuᵣ
        del factors, change
        total, deltas = torch.zeros_like(squares), group.deltas
        for i in range(group.count):
            delta = deltas[i]
            total += (_from_the_right if tall else _from_the_left)(basis, scaled, squares, delta).clamp_min(self.alpha)
            del delta
        merged = times(basis * (group.count / total), scaled)
        return (merged.mT if tall else merged).add_(group.origin)


def _from_the_left(basis: Tensor, scaled: Tensor, squares: Tensor, delta: Tensor) -> Tensor:
    """sᵣᵢ from aᵣ = sᵣvᵣ and aᵣᵢ = uᵣᵀτᵢ, for U in the basis."""
    along, sizes = torch.zeros_like(squares), torch.zeros_like(squares)
    for panel in panels(delta.shape[1], delta.shape[0]):
        own = basis.mT @ delta[:, panel].double()
        along += (own * scaled[:, panel]).sum(dim=1)
        sizes += own.square_().sum(dim=1)
    return along / sizes.clamp_min(1e-12)


def _from_the_right(basis: Tensor, scaled: Tensor, squares: Tensor, delta: Tensor) -> Tensor:
    """The same for V in the basis: from sᵣuᵣᵀτᵢ, whose square is sᵣ² as large."""
    own = torch.zeros_like(basis)
    add_product(own, scaled, delta.mT)
    along = squares * (own * basis.mT).sum(dim=1)
    return along / torch.maximum(own.square_().sum(dim=1), (1e-12 * squares).clamp_min(1e-300))
