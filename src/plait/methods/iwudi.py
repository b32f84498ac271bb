"""IWUDI, SWUDI, ASWUDI: WUDI's minimiser in closed form, with a spectral filter in place of early stopping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._parameters import Bounds, Density, Doc, Fraction, NonNegative, PositiveInt
from plait.methods._spectral import SpectralCombiner, squared_norms, summed, weighted_deltas
from plait.tensors.factors import symmetric_eigen
from plait.tensors.spectral import normal_equations
from plait.tensors.spectrum import LossRule, RankRule, effective_rank

__all__ = ["Aswudi", "Iwudi", "Swudi"]

_FLOOR = 1e-8  # the authors' smallest eigenvalue
_ROWS = 256

Filter = Literal["exponential", "landweber", "tikhonov", "none"]


@dataclass(frozen=True, kw_only=True)
class _ClosedForm(SpectralCombiner):
    """θ₀ + M₀ + (M* − M₀) Q diag(f) Qᵀ, with C = Q diag(λ) Qᵀ and M* = D C⁻¹ as in WUDI."""

    formula: ClassVar[str] = "θ₀ + M₀ + (D C⁻¹ − M₀) Q diag(f(λ)) Qᵀ"
    paper: ClassVar[Paper | None] = Paper(
        "Closed-Form Spectral Regularization for Multi-Task Model Merging",
        "Wei et al.",
        2026,
        "2606.07289",
        "WalkerWorldPeace/MLLMerging",
    )
    identity: ClassVar[Any] = {}
    temporaries: ClassVar[tuple[float, float]] = (1.5, 0.0)
    grams: ClassVar[float] = 0.0
    squares: ClassVar[float] = 3.0

    filter: Annotated[Filter, Doc("how much of the way to the minimiser each eigen-direction goes")] = "exponential"
    time: Annotated[NonNegative, Doc("t of the exponential filter 1 − exp(−λt)")] = 300.0
    landweber_steps: Annotated[PositiveInt, Doc("steps s of the Landweber filter 1 − (1 − ηλ)^s")] = 150
    landweber_rate: Annotated[Density, Doc("its η, as a share of 1/λ₁")] = 0.9
    tikhonov: Annotated[float, Bounds(gt=0), Doc("a of the Tikhonov filter λ/(λ + a)")] = 0.01
    rank_rule: Annotated[RankRule, Doc("how many eigen-directions are used; see plait.tensors.spectrum")] = "all"
    ratio: Annotated[Density, Doc("share of the directions, for ratio")] = 0.65
    level: Annotated[Fraction, Doc("level of cumvar, and of loss_elbow as a reduction")] = 0.95
    start: Annotated[Literal["sum", "mean", "zero"], Doc("M₀, where unused directions stay")] = "sum"

    def update(self, group: Group) -> Tensor:
        """Build C and D, decompose C, filter."""
        deltas = weighted_deltas(group)
        c, d = normal_equations(deltas, deltas, squared_norms(deltas))
        values, basis = symmetric_eigen(c.mT)
        del c
        values = values.clamp_min(_FLOOR)
        start = summed(deltas)
        if self.start != "sum":
            start.mul_(1.0 / group.count if self.start == "mean" else 0.0)
        began, wanted = start @ basis, d @ basis  # (m, n), one column per eigen-direction
        del d
        share = self._filter(values)
        share[self._count(values, began, wanted) :] = 0.0
        return start.addmm_(wanted.div_(values).sub_(began).mul_(share), basis.mT)

    def _filter(self, values: Tensor) -> Tensor:
        if self.filter == "exponential":
            return -torch.expm1(-values * self.time)
        if self.filter == "landweber":
            return 1.0 - (1.0 - self.landweber_rate / values[0] * values) ** self.landweber_steps
        return values / (values + self.tikhonov) if self.filter == "tikhonov" else torch.ones_like(values)

    def _count(self, values: Tensor, began: Tensor, wanted: Tensor) -> int:
        """Number of eigen-directions that are used, between 1 and all."""
        n, v = values.numel(), values.double()
        if self.rank_rule in get_args(LossRule):
            count = min(max(self._by_loss(v, began, wanted), 1), n)
        else:
            rows, columns = wanted.shape
            aspect = min(rows, columns) / max(rows, columns)
            count = effective_rank(v, self.rank_rule, self.level, aspect, self.ratio)
        if self.filter == "none":
            # an unfiltered direction beyond the numerical rank would be rounding divided by rounding
            count = min(count, int((v > float(v[0]) * n * torch.finfo(values.dtype).eps).sum()))
        return count

    def _by_loss(self, v: Tensor, began: Tensor, wanted: Tensor) -> int:
        """The rules that compare what K used directions cost, for K = 0 … n."""
        if self.rank_rule.endswith("_without_cross"):
            left = _columns(lambda b, w: (v * b).square() + w.square(), began, wanted)
        else:
            left = _columns(lambda b, w: (v * b - w).square(), began, wanted)
        misfit = _tails(left)
        if self.rank_rule.startswith("loss_elbow"):
            return int((misfit > (1.0 - self.level) * misfit[0]).sum())
        solved = _columns(lambda b, w: (w / v).square(), began, wanted).cumsum(0)
        size = torch.cat([solved.new_zeros(1), solved]) + _tails(_columns(lambda b, w: b.square(), began, wanted))
        return int((misfit + size).argmin())


def _columns(term: Callable[[Tensor, Tensor], Tensor], began: Tensor, wanted: Tensor) -> Tensor:
    """Sums over the rows of a term of both, in float64, a few rows at a time."""
    total = began.new_zeros(began.shape[1], dtype=torch.float64)
    for b, w in zip(began.split(_ROWS), wanted.split(_ROWS), strict=True):
        total += term(b.double(), w.double()).sum(dim=0)
    return total


def _tails(values: Tensor) -> Tensor:
    """Σ_{k ≥ K} values for K = 0 … n."""
    return torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])


@dataclass(frozen=True, kw_only=True)
class Iwudi(_ClosedForm):
    """Solve WUDI's least squares exactly and walk towards the solution only where the experts say something.

    With C = Σ τᵢᵀτᵢ/‖τᵢ‖² = Q diag(λ) Qᵀ, D = Σ τᵢτᵢᵀτᵢ/‖τᵢ‖² and M₀ = Σ τᵢ: θ = θ₀ + M₀ + (D C⁻¹ − M₀) Q diag(f) Qᵀ,
    f = 1 − exp(−λt): what t units of gradient flow would reach. Landweber and Tikhonov filters by name. One
    eigen-decomposition of an (n, n) matrix, n the input dimension. Scale-free, unlike WUDI. Weights scale the deltas.

    Paper: Wei et al., "Closed-Form Spectral Regularization for Multi-Task Model Merging", 2026, arXiv 2606.07289.
    """

    name: ClassVar[str] = "iwudi"
    summary: ClassVar[str] = "WUDI in closed form, with a soft spectral filter"


@dataclass(frozen=True, kw_only=True)
class Swudi(_ClosedForm):
    """IWUDI restricted to the largest eigenvalues: a soft filter and a hard truncation.

    The ⌈ratio · n⌉ leading eigen-directions of C go the way f = 1 − exp(−λt) to the minimiser, the rest stays at Σ τᵢ.
    The authors' values: t = 1300 and ratio 0.65 (ViT-B/32), 300 and 0.85 (Llama 3B, embeddings left out), 1300 and 0.01
    with λ = 0.2 (adapters).

    Paper: Wei et al., "Closed-Form Spectral Regularization for Multi-Task Model Merging", 2026, arXiv 2606.07289.
    """

    name: ClassVar[str] = "swudi"
    summary: ClassVar[str] = "WUDI in closed form, truncated to the leading eigen-directions"

    time: Annotated[NonNegative, Doc("t of the exponential filter 1 − exp(−λt)")] = 1300.0
    rank_rule: Annotated[RankRule, Doc("how many eigen-directions are used; see plait.tensors.spectrum")] = "ratio"


@dataclass(frozen=True, kw_only=True)
class Aswudi(_ClosedForm):
    """WUDI's exact solution on as many eigen-directions as each matrix's spectrum supports.

    f = 1 on the K largest eigenvalues of C and 0 elsewhere, K from a rule on the spectrum; by default the participation
    number (Σ√λ)² / Σλ. The rules `risk` and `loss_elbow` use the exact residual; `risk_without_cross` and
    `loss_elbow_without_cross` are the authors' code.

    Paper: Wei et al., "Closed-Form Spectral Regularization for Multi-Task Model Merging", 2026, arXiv 2606.07289.
    """

    name: ClassVar[str] = "aswudi"
    summary: ClassVar[str] = "WUDI in closed form, truncated at a rank that each matrix's spectrum decides"

    filter: Annotated[Filter, Doc("how much of the way to the minimiser each eigen-direction goes")] = "none"
    rank_rule: Annotated[RankRule, Doc("how many eigen-directions are used; see plait.tensors.spectrum")] = (
        "participation_sqrt"
    )
