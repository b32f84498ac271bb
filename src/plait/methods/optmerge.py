"""OptMerge: WUDI on denoised task vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._parameters import Doc, NonNegative, PositiveInt
from plait.methods._spectral import SpectralCombiner, rank_share, squared_norms, summed, weighted_deltas
from plait.tensors.descent import adam, descend_rows, momentum, times_rows
from plait.tensors.products import add_gram, mirror
from plait.tensors.spectral import add_target

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
    temporaries: ClassVar[tuple[float, float]] = (2.0, 0.0)
    grams: ClassVar[float] = 7.5
    squares: ClassVar[float] = 0.3

    steps: Annotated[PositiveInt, Doc("steps of the optimiser")] = 300
    rate: Annotated[NonNegative, Doc("learning rate")] = 1e-5
    optimizer: Annotated[Literal["adam", "sgd"], Doc("Adam, or descent with momentum 0.9")] = "adam"
    start: Annotated[Literal["sum", "mean"], Doc("where the descent starts")] = "sum"
    center: Annotated[bool, Doc("denoise what differs from the mean instead of the whole task vector")] = True

    def update(self, group: Group) -> Tensor:
        """Build C = Σ LᵢᵀLᵢ/‖τᵢ‖² and D = Σ YᵢLᵢᵀLᵢ/‖τᵢ‖², then descend on 2(M·C − D)."""
        deltas, kept = weighted_deltas(group), rank_share(group)
        total = summed(deltas)
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        d = torch.zeros_like(total)
        for i, square in enumerate(squared_norms(deltas)):
            own, target = self._denoised(group, deltas[i], total, kept)
            if square > 0:
                add_target(d, target, own, 1.0 / square)
                inputs.append(own.mul_(1.0 / math.sqrt(square)))
            targets = [target] if group.count == 1 else []
            del own, target
        times = _gram_product(inputs, d)
        for target in targets:
            d = times_rows(times, target)  # a single expert is its own minimiser, exactly
        start = total if self.start == "sum" else total.div_(group.count)
        descend = adam if self.optimizer == "adam" else momentum
        return descend_rows(descend, start, times, d, self.steps, self.rate)

    def _denoised(self, group: Group, delta: Tensor, total: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Lᵢ and Yᵢ; the delta is overwritten."""
        factors = group.factor(delta)
        kept_here = min(kept, factors.rank)
        own = factors.top(kept_here)
        inputs = own.vh * own.s[:, None]
        del own
        if not self.center:
            return inputs, factors.truncated(kept_here)
        del factors
        factors = group.factor(delta.sub_(total, alpha=1.0 / group.count))
        return inputs, factors.truncated(min(kept, factors.rank)).add_(total, alpha=1.0 / group.count)


def _gram_product(inputs: list[Tensor], like: Tensor) -> Callable[[Tensor], Tensor]:
    """Multiplication by C = Σ LᵢᵀLᵢ: by C itself, or by its factors one after the other where they are smaller."""
    n = like.shape[1]
    if 2 * sum(own.shape[0] for own in inputs) < n:
        joined = torch.cat([like.new_zeros(0, n), *inputs])
        inputs.clear()
        return lambda rows: (rows @ joined.mT) @ joined
    c = like.new_zeros(n, n)
    for own in inputs:
        add_gram(c, own.mT)
    inputs.clear()
    mirror(c)
    return lambda rows: rows @ c
