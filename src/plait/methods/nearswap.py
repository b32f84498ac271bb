"""NearSwap: take over another model's values where the two already are close."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper
from plait.methods._parameters import Doc, NonNegative

__all__ = ["NearSwap"]


@dataclass(frozen=True, kw_only=True)
class NearSwap(Combiner):
    """Interpolate towards the expert strongly where it is near the base, weakly where it is far.

    w = min(t / |θ₁ − θ₀|, 1) per element; θ = w · θ₁ + (1 − w) · θ₀. In other words the update is clipped to [−t, t]:
    entries nearer than t become the expert's, all others move by t.

    Alchemonaut 2024, "QuartetAnemoi" (model card; t = 0.0001 there), and mergekit.
    """

    name: ClassVar[str] = "nearswap"
    summary: ClassVar[str] = "take the expert's value where it is within t of the base, move by t elsewhere"
    formula: ClassVar[str] = "θ₀ + clip(θ₁ − θ₀, −t, t)"
    paper: ClassVar[Paper | None] = Paper("NearSwap (QuartetAnemoi model card)", "Alchemonaut", 2024)
    weighted: ClassVar[bool] = False
    max_experts: ClassVar[int | None] = 1
    identity: ClassVar[Any] = {"t": 1e9}

    t: Annotated[NonNegative, Doc("largest change of an entry")] = 1e-4

    def merge(self, group: Group) -> Tensor:
        """Clip the update."""
        return group.origin + group.deltas[0].clamp(-self.t, self.t)
