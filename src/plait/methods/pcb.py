"""PCB-Merging: parameters compete within their model and between models; the losers are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Scope
from plait.methods._order import ROUNDS, order_statistics, survey_order
from plait.methods._parameters import Bounds, Density, Doc, Real

__all__ = ["Pcb"]

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Pcb(Combiner):
    """Balance the competition between parameters: weigh each entry by its standing in its model and among models.

    With all quantiles and the min-max normalisation N taken over the whole model, for n experts:
    Aᵢ = |τᵢ| clipped at its `clamp` quantiles from either end, τ̄ᵢ = sign(τᵢ)·Aᵢ;
    Bᵢ = exp(n·N(Aᵢ)²) · tanh(τᵢ · Σⱼ τⱼ); sᵢ = N(max(Bᵢ, its 1 − `ratio` quantile)), which is 0 for all but the top;
    θ = θ₀ + λ · Σ wᵢsᵢτ̄ᵢ / Σ sᵢ.

    Defaults are the authors' script; their language code clamps at 0.01. `cross: standing` is their vision code, with
    τᵢ · Σⱼ sign(τⱼ)·N(Aⱼ) in the tanh. The weights wᵢ do not enter the denominator (they are what the authors search).

    Paper: Du et al., "Parameter Competition Balancing for Model Merging", NeurIPS 2024, arXiv 2410.02396.
    """

    name: ClassVar[str] = "pcb"
    summary: ClassVar[str] = "weigh each entry by how it competes within its model and among models (PCB-Merging)"
    formula: ClassVar[str] = "θ₀ + λ · Σ wᵢsᵢτ̄ᵢ / Σ sᵢ, sᵢ from exp(n·N(|τᵢ|)²) · tanh(τᵢ Σ τⱼ)"
    paper: ClassVar[Paper | None] = Paper(
        "Parameter Competition Balancing for Model Merging",
        "Du et al.",
        2024,
        "2410.02396",
        "duguodong7/pcb-merging",
    )
    identity: ClassVar[Any] = {"ratio": 1.0, "clamp": 0.0, "lambda_": 1.0}
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (6.0, 5.0)

    ratio: Annotated[Density, Doc("fraction of entries of each expert that win")] = 0.1
    lambda_: Annotated[Real, Doc("scale of the merged task vector")] = 1.2
    clamp: Annotated[float, Bounds(ge=0, lt=0.5), Doc("fraction of magnitudes clipped at either end")] = 1e-4
    cross: Annotated[
        Literal["deltas", "standing"], Doc("what an entry meets of the other models: changes, or normalised ones")
    ] = "deltas"

    @property
    def rounds(self) -> int:
        """Two for the ends of the magnitudes, two for those of the competition."""
        return 2 * ROUNDS

    @property
    def survey_scope(self) -> Scope:
        """Quantiles and normalisation are the whole model's."""
        return "model"

    @property
    def constant(self) -> frozenset[str]:
        """One clip and one threshold per model."""
        return frozenset({"ratio", "clamp", "cross"})

    def _magnitude_ranks(self, expert: int, n: int) -> tuple[int, int]:
        low, high = int(n * self.clamp), int(n * (1 - self.clamp) - 1)
        return n - min(low, n - 1), n - max(high, 0)

    def _competition_ranks(self, expert: int, n: int) -> tuple[int, int]:
        return n - min(int(n * (1 - self.ratio)), n - 1), 1

    def survey(self, group: Group) -> Any:
        """Counts of magnitudes, then of how the entries compete."""
        done = len(group.facts)
        if done < ROUNDS:
            return survey_order([delta.abs() for delta in group.deltas], group.facts, self._magnitude_ranks)
        competition = self._competition(group, self._clipped(group))
        return survey_order(competition, group.facts[ROUNDS:], self._competition_ranks)

    def _clipped(self, group: Group) -> list[tuple[Tensor, Tensor]]:
        """Per expert A, and A normalised to [0, 1]."""
        ends = order_statistics(group.facts[:ROUNDS], self._magnitude_ranks)
        sizes = [delta.abs().clamp(low, high) for delta, (low, high) in zip(group.deltas, ends, strict=True)]
        return [(size, _normalised(size, low, high)) for size, (low, high) in zip(sizes, ends, strict=True)]

    def _competition(self, group: Group, clipped: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """B, divided by eⁿ: only its place between its own ends counts, and float32 ends at e⁸⁸."""
        others = torch.zeros_like(group.deltas[0])
        for delta, (_, standing) in zip(group.deltas, clipped, strict=True):
            others += delta if self.cross == "deltas" else delta.sign() * standing
        return [
            torch.exp(group.count * (standing.square() - 1)) * torch.tanh(delta * others)
            for delta, (_, standing) in zip(group.deltas, clipped, strict=True)
        ]

    def merge(self, group: Group) -> Tensor:
        """Clip, compete, average the winners."""
        clipped = self._clipped(group)
        ends = order_statistics(group.facts[ROUNDS:], self._competition_ranks)
        total = torch.zeros_like(group.deltas[0])
        share = torch.zeros_like(total)
        values = zip(group.deltas, clipped, self._competition(group, clipped), ends, group.weights, strict=True)
        for delta, (size, _), competition, (low, high), weight in values:
            score = _normalised(competition.clamp(low, high), low, high)
            total.add_(delta.sign() * size * score, alpha=weight)
            share += score
        return group.origin + self.lambda_ * total / share.clamp(min=_TINY)


def _normalised(values: Tensor, low: float, high: float) -> Tensor:
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
