"""Multi-SLERP: the direction of the mean of unit vectors, at the mean length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from plait.errors import RecipeError
from plait.methods._contract import Combiner, Group, Paper
from plait.methods._parameters import Doc
from plait.tensors.consensus import weighted_sum
from plait.tensors.geometry import cosines, gram, gram_matrix, norms
from plait.tensors.sums import Each

__all__ = ["MultiSlerp"]

_TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class MultiSlerp(Combiner):
    """Average directions and lengths apart: the result points along Σ wᵢuᵢ and is Σ wᵢ‖xᵢ‖ long, uᵢ = xᵢ/‖xᵢ‖.

    xᵢ are the task vectors where the recipe names a base, else the models. mergekit then adds the exponential map of
    Σ wᵢ(uᵢ − ⟨uᵢ, m⟩m), m the direction of Σ wᵢuᵢ; that tangent vector is zero, so this is the same. Unlike a linear
    average of vectors at wide angles the result is not shortened. Where the directions cancel it is Σ wᵢxᵢ.

    Goddard 2024, arcee-ai/mergekit, `multislerp`.
    """

    name: ClassVar[str] = "multislerp"
    summary: ClassVar[str] = "average the directions and the lengths of several models or task vectors"
    formula: ClassVar[str] = "θ₀ + Σ wᵢ‖xᵢ‖ · Σ wᵢuᵢ / ‖Σ wᵢuᵢ‖"
    paper: ClassVar[Paper | None] = Paper("Multi-SLERP (mergekit)", "Goddard", 2024, "", "arcee-ai/mergekit")
    needs_base: ClassVar[bool] = False
    optional_base: ClassVar[bool] = True
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (3.0, 0.0)

    normalize: Annotated[bool, Doc("divide the weights by their sum")] = True

    @property
    def rounds(self) -> int:
        """One round for lengths and angles."""
        return 1

    def check(self, weights: tuple[float, ...]) -> None:
        """Refuse weights that cancel when they are to be normalised."""
        if self.normalize and abs(sum(weights)) < _TINY:
            raise RecipeError(
                f"the weights {', '.join(f'{w:g}' for w in weights)} of 'multislerp' add up to 0 and cannot be "
                "normalised; change them, or set normalize: false."
            )

    def survey(self, group: Group) -> Each:
        """Inner products of one block."""
        return gram(group.deltas)

    def merge(self, group: Group) -> Tensor:
        """Add the vectors with the coefficients that the Gram matrix gives."""
        matrix = gram_matrix(group.facts[0])
        weights = torch.tensor(group.weights, dtype=torch.float64)
        if self.normalize:
            weights = weights / weights.sum()
        length = norms(matrix)
        mean = float((weights @ cosines(matrix) @ weights).clamp(min=0.0).sqrt())
        if mean >= _TINY:
            safe = torch.where(length > 0, length, 1.0)
            weights = weights / safe * float(weights @ length) / mean
        return group.origin + weighted_sum(group.deltas, weights.tolist())
