"""Karcher mean: the point on the sphere that is nearest to all models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from plait.errors import RecipeError
from plait.methods._contract import Combiner, Group, Paper
from plait.methods._parameters import Doc, NonNegative, PositiveInt
from plait.tensors.consensus import weighted_sum
from plait.tensors.geometry import cosines, gram, gram_matrix, norms
from plait.tensors.sums import Each

__all__ = ["Karcher"]


@dataclass(frozen=True, kw_only=True)
class Karcher(Combiner):
    """Find the Riemannian mean of the tensors' directions, and give it their mean length.

    On the unit sphere u ← exp_u(Σ αᵢ log_u(uᵢ)) from the normalised mean on, until a step is shorter than `tolerance`;
    the result is (Σ αᵢ‖θᵢ‖) · u, αᵢ = wᵢ/Σ w. SLERP at t = ½ is the case of two models of equal length. Every iterate
    is a combination of the models, so the iteration runs on their Gram matrix, in float64, and the merge is
    elementwise. A tensor no longer than `tolerance` has no direction; directions that cancel start from the first.

    Karcher 1977, "Riemannian center of mass and mollifier smoothing"; as in mergekit, which has equal weights only.
    """

    name: ClassVar[str] = "karcher"
    summary: ClassVar[str] = "Riemannian mean of the models' directions on the sphere, at their mean length"
    formula: ClassVar[str] = "(Σ αᵢ‖θᵢ‖) · argmin_u Σ αᵢ∠(u, θᵢ)²"
    paper: ClassVar[Paper | None] = Paper(
        "Riemannian center of mass and mollifier smoothing", "Karcher", 1977, code="arcee-ai/mergekit"
    )
    translates: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    cost: ClassVar[Any] = "survey"

    max_iter: Annotated[PositiveInt, Doc("largest number of steps")] = 10
    tolerance: Annotated[NonNegative, Doc("length of a step, in radians, at which the iteration stops")] = 1e-5

    @property
    def rounds(self) -> int:
        """One round for lengths and angles."""
        return 1

    def check(self, weights: tuple[float, ...]) -> None:
        """Refuse weights that no mean has."""
        if any(w < 0 for w in weights) or sum(weights) <= 0:
            raise RecipeError("the weights of 'karcher' must not be negative, and not all 0.")

    def survey(self, group: Group) -> Each:
        """Inner products of one block."""
        return gram(group.experts)

    def merge(self, group: Group) -> Tensor:
        """Add the models with the coefficients of the mean."""
        matrix = gram_matrix(group.facts[0])
        length = norms(matrix)
        alpha = torch.tensor(group.weights, dtype=torch.float64)
        alpha = alpha / alpha.sum()
        live = (length > self.tolerance) & (alpha > 0)
        if not bool(live.any()):
            return weighted_sum(group.experts, alpha.tolist())
        shares = torch.zeros_like(alpha)
        shares[live] = self._mean(cosines(matrix)[live][:, live], alpha[live]) / length[live]
        return weighted_sum(group.experts, (float(alpha @ length) * shares).tolist())

    def _mean(self, cosine: Float[Tensor, "n n"], alpha: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The mean direction Σ cᵢuᵢ, as its coefficients c."""
        alpha = alpha / alpha.sum()
        first = torch.zeros_like(alpha)
        first[0] = 1.0
        size = _length(alpha, cosine)
        mean = alpha / size if size > max(self.tolerance, 1e-12) else first
        for _ in range(self.max_iter):
            towards = (cosine @ mean).clamp(-1.0, 1.0)
            angle = torch.acos(towards)
            # at 0 the logarithm is 0, at π it has no direction: neither moves the mean
            near = (angle <= self.tolerance) | (angle.sin() < 1e-12)
            pull = torch.where(near, 0.0, alpha * angle / torch.where(near, 1.0, angle.sin()))
            tangent = pull - (pull @ towards) * mean
            step = _length(tangent, cosine)
            if step <= self.tolerance:
                break
            mean = step.cos() * mean + step.sin() / step * tangent
            mean = mean / _length(mean, cosine)
        return mean


def _length(coefficients: Float[Tensor, " n"], cosine: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    return (coefficients @ cosine @ coefficients).clamp(min=0.0).sqrt()
