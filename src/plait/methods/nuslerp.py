"""NuSLERP: spherical interpolation of two task vectors, or of two models, by their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Subject, Unit
from plait.methods._parameters import Doc
from plait.tensors.geometry import cosines, gram, gram_matrix, gram_rows, slerp_shares
from plait.tensors.sums import Each

__all__ = ["NuSlerp"]


@dataclass(frozen=True, kw_only=True)
class NuSlerp(Combiner):
    """Interpolate along the great circle between two task vectors, at t = w₂/(w₁ + w₂).

    θ = θ₀ + sin((1−t)ω)/sin ω · τ₁ + sin(tω)/sin ω · τ₂ with ω the angle between τ₁ and τ₂; straight where they are
    colinear. Without a base the models themselves are interpolated. Task vectors of different fine-tunes stand at wide
    angles, where whole models hardly do: with a base this differs from linear interpolation.

    `scope: row` takes one angle per row of a weight (mergekit's `nuslerp_flatten: false`), `scope: column` one per
    column, the entries along the first dimension (there `nuslerp_row_wise: true`, although it names the columns).

    Shoemake 1985, "Animating rotation with quaternion curves"; as in mergekit.
    """

    name: ClassVar[str] = "nuslerp"
    summary: ClassVar[str] = "spherical interpolation of two task vectors, or of two models without a base"
    formula: ClassVar[str] = "θ₀ + sin((1−t)ω)/sin ω · τ₁ + sin(tω)/sin ω · τ₂"
    paper: ClassVar[Paper | None] = Paper(
        "Animating rotation with quaternion curves", "Shoemake", 1985, code="arcee-ai/mergekit"
    )
    needs_base: ClassVar[bool] = False
    optional_base: ClassVar[bool] = True
    min_experts: ClassVar[int] = 2
    max_experts: ClassVar[int | None] = 2
    identity: ClassVar[Any] = None
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (4.0, 0.0)

    scope: Annotated[Literal["tensor", "row", "column"], Doc("what one angle is taken over")] = "tensor"

    @property
    def rounds(self) -> int:
        """One round for the angle of a whole tensor."""
        return int(self.scope == "tensor")

    def unit(self, subject: Subject) -> Unit:
        """Rows whole; columns need the whole tensor, except that a vector is one column."""
        if self.scope == "column":
            return "tensor" if len(subject.shape) > 1 else "row"
        return "row" if self.scope == "row" else "element"

    def survey(self, group: Group) -> Each:
        """Inner products of one block."""
        return gram(group.deltas)

    def merge(self, group: Group) -> Tensor:
        """Weigh the two vectors by the sines of their angle."""
        a, b = group.deltas
        total = sum(group.weights)
        t = group.weights[1] / total if abs(total) > 1e-6 else 0.5
        if self.scope == "tensor":
            left, right = (float(s) for s in slerp_shares(cosines(gram_matrix(group.facts[0]))[0, 1], t))
            return group.origin + (left * a + right * b)
        if self.scope == "column" and a.ndim > 1 and len(group.subject.shape) > 1:
            rows = [delta.reshape(delta.shape[0], -1).mT for delta in (a, b)]
            left, right = slerp_shares(cosines(gram_rows(rows))[:, 0, 1], t)
            left, right = (s.to(a.dtype).reshape(a.shape[1:]) for s in (left, right))
        else:
            left, right = slerp_shares(cosines(gram_rows([d.reshape(-1, d.shape[-1]) for d in (a, b)]))[:, 0, 1], t)
            left, right = (s.to(a.dtype).reshape(*a.shape[:-1], 1) for s in (left, right))
        return group.origin + (left * a + right * b)
