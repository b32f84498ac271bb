"""ExPO: extrapolate from the base beyond an aligned model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper
from plait.methods._parameters import Doc, Real

__all__ = ["Expo"]


@dataclass(frozen=True, kw_only=True)
class Expo(Combiner):
    """Go on in the direction of training: θ = θ₁ + alpha · (θ₁ − θ₀).

    θ₀ (`base`) is the model before alignment (SFT), θ₁ the one expert, aligned from it (DPO, RLHF). The authors search
    alpha with a reward model on development prompts; 0.3 or 0.5 are usually good. It fails where θ₁ is over-trained or
    θ₀ is not its parent. −1 gives θ₀ back, 0 gives θ₁.

    Paper: Zheng et al., "Model Extrapolation Expedites Alignment", ACL 2025, arXiv 2404.16792.
    """

    name: ClassVar[str] = "expo"
    summary: ClassVar[str] = "extrapolate from the base beyond an aligned model"
    formula: ClassVar[str] = "θ₁ + alpha · (θ₁ − θ₀)"
    paper: ClassVar[Paper | None] = Paper(
        "Model Extrapolation Expedites Alignment",
        "Zheng et al.",
        2025,
        "2404.16792",
        "chujiezheng/LLM-Extrapolation",
    )
    weighted: ClassVar[bool] = False
    max_experts: ClassVar[int | None] = 1
    identity: ClassVar[Any] = {"alpha": 0.0}

    alpha: Annotated[Real, Doc("how far beyond the expert, in units of its update")] = 0.3

    def merge(self, group: Group) -> Tensor:
        """Add the scaled update to the expert, not to the base: alpha 0 then is the expert exactly."""
        return group.experts[0] + self.alpha * group.deltas[0]
