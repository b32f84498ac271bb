"""DARE: drop most of each task vector at random and rescale the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from plait.methods._contract import Group, Paper, Scope, Sparsifier
from plait.methods._parameters import Density, Doc, PerExpert
from plait.methods._trim import ROUNDS, l1_factors, l1_sums, per_expert, survey_thresholds, thresholds, trim

__all__ = ["COMPOSITIONS", "Dare"]

#: what the field calls DARE in front of task arithmetic and in front of TIES
COMPOSITIONS = {"dare_linear": ("dare", "task_arithmetic"), "dare_ties": ("dare", "ties")}


@dataclass(frozen=True, kw_only=True)
class Dare(Sparsifier):
    """Drop entries of each delta and rescale what remains, in front of any combiner.

    mᵢ ~ Bernoulli(density) per element; τ̂ᵢ = mᵢτᵢ / density, so that E[τ̂ᵢ] = τᵢ. With `rescale: l1` each tensor is
    scaled back to its own L1 norm instead (mergekit's variant). With `strategy: magnitude` the smallest entries of
    each tensor are dropped instead of random ones.

    Paper: Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
    ICML 2024, arXiv 2311.03099.
    """

    name: ClassVar[str] = "dare"
    summary: ClassVar[str] = "drop random entries of each task vector, rescale the rest"
    formula: ClassVar[str] = "τ̂ᵢ = Bernoulli(density) ⊙ τᵢ / density"
    paper: ClassVar[Paper | None] = Paper(
        "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
        "Yu et al.",
        2024,
        "2311.03099",
        "yule-BUAA/MergeLM",
    )
    identity: ClassVar[Any] = {"density": 1.0}
    temporaries: ClassVar[tuple[float, float]] = (0.0, 3.0)

    density: Annotated[Density | tuple[float, ...], PerExpert(), Doc("fraction of entries each expert keeps")] = 0.9
    rescale: Annotated[
        Literal["inverse", "l1", "none"], Doc("divide by density, match each tensor's L1 norm, or leave")
    ] = "inverse"
    strategy: Annotated[Literal["random", "magnitude"], Doc("which entries are dropped")] = "random"

    @property
    def random(self) -> bool:
        """Random unless entries are dropped by magnitude."""
        return self.strategy == "random"

    @property
    def _counting(self) -> int:
        return ROUNDS if self.strategy == "magnitude" else 0

    @property
    def rounds(self) -> int:
        """Two rounds to find a threshold, one for L1 norms."""
        return self._counting + (self.rescale == "l1")

    @property
    def survey_scope(self) -> Scope:
        """Thresholds and norms are those of one tensor."""
        return "tensor"

    def _masked(self, group: Group) -> tuple[Tensor, ...]:
        densities = per_expert(self.density, group.count)
        if self.strategy == "magnitude":
            return trim(group.deltas, thresholds(group.facts, densities, "mask_drop"))
        return tuple(
            delta if density >= 1 else delta * (group.uniform(i) < density)
            for i, (delta, density) in enumerate(zip(group.deltas, densities, strict=True))
        )

    def survey(self, group: Group) -> Any:
        """Counts of magnitudes, then L1 norms before and after the mask."""
        if len(group.facts) < self._counting:
            densities = per_expert(self.density, group.count)
            return survey_thresholds(group.deltas, group.facts, densities, "mask_drop")
        return l1_sums(group.deltas, self._masked(group))

    def sparsify(self, group: Group) -> tuple[Tensor, ...]:
        """Drop and rescale."""
        if self.rescale == "l1":
            factors = l1_factors(group.facts[-1])
        elif self.rescale == "inverse":
            factors = tuple(1.0 / density for density in per_expert(self.density, group.count))
        else:
            factors = (1.0,) * group.count
        return tuple(delta * factor for delta, factor in zip(self._masked(group), factors, strict=True))
