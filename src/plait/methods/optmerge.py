"""OptMerge: WUDI on denoised task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._parameters import Doc, NonNegative, PositiveInt
from plait.methods._spectral import SpectralCombiner, rank_share, squared_norms, weighted_deltas
from plait.tensors.consensus import weighted_sum
from plait.tensors.descent import adam, momentum
from plait.tensors.spectral import normal_equations

__all__ = ["OptMerge"]


@dataclass(frozen=True, kw_only=True)
class OptMerge(SpectralCombiner):
    """Minimise Σᵢ ‖(M − Yᵢ) Lᵢᵀ‖² / ‖τᵢ‖² over M, with truncated inputs Lᵢ and denoised targets Yᵢ.

    k = ⌊min(m, n)/T⌋; Lᵢ = S_k V_k of τᵢ; Yᵢ = τ̄ + the k leading triplets of τᵢ − τ̄ (with `center: false`: of τᵢ).
    Full fine-tunes: Adam from Σ τᵢ, targets centred (the defaults). Adapters, in the authors' code: `center: false,
    optimizer: sgd, rate: 1e-4, start: mean`. As in WUDI, Adam's steps are absolute. Weights scale the deltas. The
    authors leave embeddings, head, norms and vision towers at the base.

    Paper: Wei et al., "OptMerge: Unifying Multimodal LLM Capabilities and Modalities via Model Merging", ICLR 2026,
    arXiv 2505.19892.
    """

    name: ClassVar[str] = "optmerge"
    summary: ClassVar[str] = "WUDI on truncated, centred task vectors (WUDI v2)"
    formula: ClassVar[str] = "θ₀ + λ · argmin_M Σᵢ ‖(M − Yᵢ) Lᵢᵀ‖² / ‖τᵢ‖², stopped early"
    paper: ClassVar[Paper | None] = Paper(
        "OptMerge: Unifying Multimodal LLM Capabilities and Modalities via Model Merging",
        "Wei et al.",
        2026,
        "2505.19892",
        "WalkerWorldPeace/MLLMerging",
    )
    identity: ClassVar[Any] = {}
    cost: ClassVar[Any] = "iterative"
    temporaries: ClassVar[tuple[float, float]] = (14.0, 2.0)
    squares: ClassVar[float] = 3.0

    steps: Annotated[PositiveInt, Doc("steps of the optimiser")] = 300
    rate: Annotated[NonNegative, Doc("learning rate")] = 1e-5
    optimizer: Annotated[Literal["adam", "sgd"], Doc("Adam, or descent with momentum 0.9")] = "adam"
    start: Annotated[Literal["sum", "mean"], Doc("where the descent starts")] = "sum"
    center: Annotated[bool, Doc("denoise what differs from the mean instead of the whole task vector")] = True

    def update(self, group: Group) -> Tensor:
        """Build C = Σ LᵢᵀLᵢ/‖τᵢ‖² and D = Σ YᵢLᵢᵀLᵢ/‖τᵢ‖², then descend on 2(M·C − D)."""
        deltas, kept = weighted_deltas(group), rank_share(group)
        total = weighted_sum(deltas, [1.0] * len(deltas))
        mean = total / len(deltas)
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for delta in deltas:
            part = group.factor(delta).top(kept)
            inputs.append(part.s[:, None] * part.vh)
            targets.append(mean + group.factor(delta - mean).top(kept).matrix() if self.center else part.matrix())
        c, d = normal_equations(inputs, targets, squared_norms(deltas))
        start = total if self.start == "sum" else mean
        descend = adam if self.optimizer == "adam" else momentum
        return descend(start, lambda m: (m @ c - d) * 2.0, self.steps, self.rate)
