"""One model as it is: the method of layer stacking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from plait.methods._contract import Combiner, Group
from plait.methods._parameters import Doc, Real

__all__ = ["Passthrough"]


@dataclass(frozen=True, kw_only=True)
class Passthrough(Combiner):
    """Copy one model, or stack layers of several with the recipe's `slices`: θ = scale · θ₁.

    With scale 1 and an unchanged dtype tensors are copied as bytes.
    """

    name: ClassVar[str] = "passthrough"
    summary: ClassVar[str] = "copy one model, or stack layer slices of several"
    formula: ClassVar[str] = "scale · θ₁"
    needs_base: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    max_experts: ClassVar[int | None] = 1
    identity: ClassVar[Any] = {}

    scale: Annotated[Real, Doc("factor on every value")] = 1.0

    @property
    def copies(self) -> bool:
        """Unless values are scaled."""
        return self.scale == 1.0

    def merge(self, group: Group) -> Tensor:
        """Scale the only expert."""
        return group.experts[0] * self.scale
