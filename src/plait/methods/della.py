"""DELLA: drop the smaller entries of each task vector with the higher probability, then elect and fuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from plait.errors import RecipeError
from plait.methods._contract import Group, Paper, Sparsifier, Subject, Unit
from plait.methods._elect import ELECT_AND_MERGE
from plait.methods._parameters import Density, Doc, Fraction, PerExpert
from plait.methods._trim import l1_factors, l1_sums, per_expert
from plait.tensors.ranks import relative_magnitudes, relative_ranks

__all__ = ["COMPOSITIONS", "Magprune"]

#: the paper's three steps with its example's λ, and mergekit's variant without the election
COMPOSITIONS = {
    "della": ("magprune", ("ties", {**ELECT_AND_MERGE, "lambda": 1.1})),
    "della_linear": ("magprune", "task_arithmetic"),
}


@dataclass(frozen=True, kw_only=True)
class Magprune(Sparsifier):
    """Keep each entry with a probability that grows with its magnitude: DELLA's first step.

    pᵢ = density − ε + 2ε · (rank − 1)/(n − 1), ranks ascending in |τᵢ| over each row of n entries; mᵢ ~ Bernoulli(pᵢ);
    τ̂ᵢ = mᵢτᵢ/pᵢ, so that E[τ̂ᵢ] = τᵢ. ε is half the authors' window; ε = 0 is DARE. The method `della` puts sign
    election and the mean of those who agree behind it.

    Defaults are the authors' example. Their `rank_magnitude_layer` is `scope: tensor`, their `magnitude_sample`
    `by: magnitude`; mergekit's variant is `rescale: l1`, which matches the L1 norm of each tensor instead.

    Paper: Deep, Bhardwaj and Poria, "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based
    Sampling", 2024, arXiv 2406.11617.
    """

    name: ClassVar[str] = "magprune"
    summary: ClassVar[str] = "drop random entries of each task vector, small ones more often (DELLA's MAGPRUNE)"
    formula: ClassVar[str] = "τ̂ᵢ = Bernoulli(pᵢ) ⊙ τᵢ / pᵢ with pᵢ = density ± ε by rank"
    paper: ClassVar[Paper | None] = Paper(
        "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling",
        "Deep, Bhardwaj and Poria",
        2024,
        "2406.11617",
        "declare-lab/della",
    )
    identity: ClassVar[Any] = {"density": 1.0}
    temporaries: ClassVar[tuple[float, float]] = (5.0, 2.0)

    density: Annotated[Density | tuple[float, ...], PerExpert(), Doc("mean fraction of entries each expert keeps")] = (
        0.7
    )
    epsilon: Annotated[
        Fraction | tuple[float, ...], PerExpert(), Doc("how far the probability strays from density, either way")
    ] = 0.07
    rescale: Annotated[
        Literal["inverse", "l1", "none"], Doc("divide each entry by its probability, match the L1 norm, or leave")
    ] = "inverse"
    scope: Annotated[Literal["row", "tensor"], Doc("what entries are ranked over")] = "row"
    by: Annotated[Literal["rank", "magnitude"], Doc("probability linear in the rank, or in the magnitude")] = "rank"

    @property
    def random(self) -> bool:
        """Random unless everything is kept."""
        return self.density != 1.0

    @property
    def rounds(self) -> int:
        """One for L1 norms."""
        return int(self.rescale == "l1")

    def unit(self, subject: Subject) -> Unit:
        """Ranking needs whole rows, or the whole tensor."""
        return "row" if self.scope == "row" else "tensor"

    def check(self, weights: tuple[float, ...]) -> None:
        """Refuse probabilities outside (0, 1]."""
        count = len(weights)
        for density, epsilon in zip(per_expert(self.density, count), per_expert(self.epsilon, count), strict=True):
            if density < 1 and not (density - epsilon > 0 and density + epsilon <= 1):
                raise RecipeError(
                    f"density {density:g} and epsilon {epsilon:g} of 'magprune' give probabilities from "
                    f"{density - epsilon:g} to {density + epsilon:g}; they must lie in (0, 1]. Use an epsilon below "
                    f"{min(density, 1 - density):g}."
                )

    def _probability(self, delta: Tensor, density: float, epsilon: float) -> Tensor:
        rows = delta if self.scope == "row" else delta.reshape(1, -1)
        place = relative_ranks(rows) if self.by == "rank" else relative_magnitudes(rows)
        return (density - epsilon + 2 * epsilon * place).view_as(delta)

    def _masked(self, group: Group) -> tuple[Tensor, ...]:
        densities, epsilons = per_expert(self.density, group.count), per_expert(self.epsilon, group.count)
        kept = []
        for i, delta in enumerate(group.deltas):
            if densities[i] >= 1 or not delta.numel():
                kept.append(delta)
                continue
            probability = self._probability(delta, densities[i], epsilons[i])
            masked = delta * (group.uniform(i) < probability)
            kept.append(masked / probability if self.rescale == "inverse" else masked)
        return tuple(kept)

    def survey(self, group: Group) -> Any:
        """L1 norms before and after the mask."""
        return l1_sums(group.deltas, self._masked(group))

    def sparsify(self, group: Group) -> tuple[Tensor, ...]:
        """Draw, drop and rescale."""
        masked = self._masked(group)
        if self.rescale != "l1":
            return masked
        return tuple(delta * factor for delta, factor in zip(masked, l1_factors(group.facts[-1]), strict=True))
