"""Weighted averaging of whole models: model soups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from plait.errors import RecipeError
from plait.methods._contract import Combiner, Group, Paper, Subject
from plait.methods._parameters import Doc
from plait.tensors.consensus import weighted_sum
from plait.tensors.lowrank import LowRank, concatenate

__all__ = ["Linear"]


@dataclass(frozen=True, kw_only=True)
class Linear(Combiner):
    """Average the models: θ = Σ wᵢθᵢ / Σ wᵢ (without `normalize`: Σ wᵢθᵢ).

    Equal weights give the uniform soup. The base model takes no part unless it is named among the experts.

    Paper: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time", ICML 2022, arXiv 2203.05482.
    """

    name: ClassVar[str] = "linear"
    summary: ClassVar[str] = "weighted average of the models (uniform soup by default)"
    formula: ClassVar[str] = "Σ wᵢθᵢ / Σ wᵢ"
    paper: ClassVar[Paper | None] = Paper(
        "Model soups: averaging weights of multiple fine-tuned models improves accuracy",
        "Wortsman et al.",
        2022,
        "2203.05482",
        "mlfoundations/model-soups",
    )
    needs_base: ClassVar[bool] = False

    normalize: Annotated[bool, Doc("divide by the sum of the weights")] = True

    def check(self, weights: tuple[float, ...]) -> None:
        """Refuse weights that cancel: dividing by their sum would fill the model with infinities."""
        if self.normalize and abs(sum(weights)) < 1e-8:
            raise RecipeError(
                f"the weights {', '.join(f'{w:g}' for w in weights)} of 'linear' add up to 0 and cannot be normalised; "
                "change them, or set normalize: false."
            )

    def merge(self, group: Group) -> Tensor:
        """Sum, then divide once."""
        total = weighted_sum(group.experts, group.weights)
        return total / sum(group.weights) if self.normalize else total

    def factored(self, subject: Subject) -> bool:
        """Sums of products are products of stacked factors."""
        del subject
        return True

    def merge_low_rank(self, group: Group) -> LowRank:
        """Concatenate the factors."""
        assert group.low_rank is not None
        total = sum(group.weights) if self.normalize else 1.0
        return concatenate(group.low_rank, [weight / total for weight in group.weights])
