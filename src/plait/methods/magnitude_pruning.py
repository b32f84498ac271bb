"""Magnitude pruning: keep the largest changes of each task vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from plait.methods._contract import Group, Paper, Scope, Sparsifier, Subject, Unit
from plait.methods._parameters import Density, Doc, PerExpert
from plait.methods._trim import ROUNDS, per_expert, survey_thresholds, thresholds, trim, trim_rows

__all__ = ["MagnitudePruning"]


@dataclass(frozen=True, kw_only=True)
class MagnitudePruning(Sparsifier):
    """Drop the int(n·(1 − density)) smallest entries of every row of each delta.

    Entries that equal the smallest one kept are kept with it. FusionBench's magnitude-difference pruning does this to
    the weights of linear layers and leaves everything else at the base; say so with `copy` rules.

    Han et al. 2015, "Learning both weights and connections for efficient neural networks", arXiv 1506.02626, applied
    to what fine-tuning changed.
    """

    name: ClassVar[str] = "magnitude_pruning"
    summary: ClassVar[str] = "keep the largest changes of each row of each task vector"
    formula: ClassVar[str] = "τ̂ᵢ = τᵢ ⊙ [|τᵢ| among the row's largest]"
    paper: ClassVar[Paper | None] = Paper(
        "Learning both weights and connections for efficient neural networks", "Han et al.", 2015, "1506.02626"
    )
    identity: ClassVar[Any] = {"density": 1.0}
    temporaries: ClassVar[tuple[float, float]] = (1.5, 2.0)

    density: Annotated[Density | tuple[float, ...], PerExpert(), Doc("fraction of entries each expert keeps")] = 0.3
    scope: Annotated[Literal["row", "tensor", "model"], Doc("what the kept fraction is counted over")] = "row"

    @property
    def rounds(self) -> int:
        """Two to find a threshold; rows are trimmed whole."""
        return 0 if self.scope == "row" else ROUNDS

    @property
    def survey_scope(self) -> Scope:
        """The trimming scope."""
        return "model" if self.scope == "model" else "tensor"

    @property
    def constant(self) -> frozenset[str]:
        """One threshold per expert and scope, hence one density."""
        return frozenset({"density"})

    def unit(self, subject: Subject) -> Unit:
        """Rows are trimmed whole; everything else is elementwise once the thresholds are known."""
        return "row" if self.scope == "row" else "element"

    def survey(self, group: Group) -> Any:
        """Counts of magnitudes."""
        return survey_thresholds(group.deltas, group.facts, per_expert(self.density, group.count), "mask_drop")

    def sparsify(self, group: Group) -> tuple[Tensor, ...]:
        """Drop what lies below the thresholds."""
        densities = per_expert(self.density, group.count)
        if self.scope == "row":
            return trim_rows(group.deltas, densities, "mask_drop")
        return trim(group.deltas, thresholds(group.facts, densities, "mask_drop"))
