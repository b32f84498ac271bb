"""Spherical interpolation between two models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper
from plait.methods._parameters import Doc, Fraction
from plait.tensors.sums import Each, dot

__all__ = ["Slerp"]

_TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class Slerp(Combiner):
    """Interpolate along the great circle between two tensors, each seen as one vector.

    With ω the angle between a and b: θ = sin((1−t)ω)/sin ω · a + sin(tω)/sin ω · b; where |cos ω| exceeds
    `colinear`, θ = (1−t)·a + t·b. t = 0 is the first model. Fine-tunes of one base are nearly colinear, so for them
    this is linear interpolation; `nuslerp` interpolates their task vectors instead.

    Shoemake 1985, "Animating rotation with quaternion curves"; per tensor as in mergekit, FusionBench and MergeLLM.
    """

    name: ClassVar[str] = "slerp"
    summary: ClassVar[str] = "spherical interpolation between two models"
    formula: ClassVar[str] = "sin((1−t)ω)/sin ω · a + sin(tω)/sin ω · b"
    paper: ClassVar[Paper | None] = Paper("Animating rotation with quaternion curves", "Shoemake", 1985)
    translates: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    min_experts: ClassVar[int] = 2
    max_experts: ClassVar[int | None] = 2
    identity: ClassVar[Any] = None
    cost: ClassVar[Any] = "survey"

    t: Annotated[Fraction, Doc("0 is the first model, 1 the second")] = 0.5
    colinear: Annotated[Fraction, Doc("above this |cos ω| the interpolation is linear")] = 0.9995

    @property
    def rounds(self) -> int:
        """One round for the angle of the tensor."""
        return 1

    def survey(self, group: Group) -> Each:
        """⟨a, a⟩, ⟨b, b⟩ and ⟨a, b⟩ of one block."""
        a, b = group.experts
        return Each((dot(a, a), dot(b, b), dot(a, b)))

    def merge(self, group: Group) -> Tensor:
        """Weigh the two tensors, unnormalised, by the angle's sines."""
        a, b = group.experts
        aa, bb, ab = (float(item) for item in group.facts[0].items)
        norms = [n if (n := math.sqrt(square)) > _TINY else 1.0 for square in (aa, bb)]
        cosine = ab / (norms[0] * norms[1])
        if abs(cosine) > self.colinear:
            return (1.0 - self.t) * a + self.t * b
        omega = math.acos(cosine)
        return math.sin((1.0 - self.t) * omega) / math.sin(omega) * a + math.sin(self.t * omega) / math.sin(omega) * b
