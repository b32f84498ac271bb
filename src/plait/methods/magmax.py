"""MagMax: per entry, the change of largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper
from plait.methods._parameters import Doc, Real
from plait.tensors.consensus import largest_change

__all__ = ["Magmax"]


@dataclass(frozen=True, kw_only=True)
class Magmax(Combiner):
    """Take, per entry, the task vector of largest magnitude: θ = θ₀ + λ · τ_k with k = argmax |τᵢ|.

    Of changes of equal magnitude and opposite sign the later expert's is taken: made for experts that were tuned one
    after the other.

    Paper: Marczak et al., "MagMax: Leveraging Model Merging for Seamless Continual Learning", ECCV 2024,
    arXiv 2403.15211.
    """

    name: ClassVar[str] = "magmax"
    summary: ClassVar[str] = "per entry, the change of largest magnitude"
    formula: ClassVar[str] = "θ₀ + λ · τ_k with k = argmax |τᵢ|"
    paper: ClassVar[Paper | None] = Paper(
        "MagMax: Leveraging Model Merging for Seamless Continual Learning",
        "Marczak et al.",
        2024,
        "2403.15211",
        "danielm1405/magmax",
    )
    weighted: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    identity: ClassVar[Any] = {"lambda_": 1.0}
    temporaries: ClassVar[tuple[float, float]] = (2.0, 1.5)

    lambda_: Annotated[Real, Doc("scale of the merged task vector")] = 0.5

    def merge(self, group: Group) -> Tensor:
        """Select, scale once, add to the base."""
        return group.origin + self.lambda_ * largest_change(group.deltas)
