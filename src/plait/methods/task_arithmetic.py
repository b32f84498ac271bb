"""Task arithmetic: add, negate and combine task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from plait.errors import RecipeError
from plait.methods._contract import Combiner, Group, Paper, Subject
from plait.methods._parameters import Doc, Real
from plait.tensors.consensus import weighted_sum
from plait.tensors.lowrank import LowRank, concatenate

__all__ = ["TaskArithmetic"]


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Combiner):
    """Add task vectors to the base: θ = θ₀ + λ · Σ wᵢτᵢ.

    A negative weight makes the model forget a task; an analogy "C + (B − A)" is the weights (−1, 1, 1). The authors
    choose λ on validation data from 0.05, 0.1, …, 1.0; without data 0.3 to 0.4 suits many experts.

    Paper: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089.
    """

    name: ClassVar[str] = "task_arithmetic"
    summary: ClassVar[str] = "add (or, with negative weights, subtract) task vectors"
    formula: ClassVar[str] = "θ₀ + λ · Σ wᵢτᵢ"
    paper: ClassVar[Paper | None] = Paper(
        "Editing Models with Task Arithmetic", "Ilharco et al.", 2023, "2212.04089", "mlfoundations/task_vectors"
    )

    lambda_: Annotated[Real, Doc("scale of the summed task vectors")] = 1.0
    normalize: Annotated[bool, Doc("divide by the sum of the weights")] = False

    def check(self, weights: tuple[float, ...]) -> None:
        """Refuse weights that cancel when they are to be normalised."""
        if self.normalize and abs(sum(weights)) < 1e-8:
            raise RecipeError(
                f"the weights {', '.join(f'{w:g}' for w in weights)} of 'task_arithmetic' add up to 0 and cannot be "
                "normalised; change them, or set normalize: false."
            )

    def merge(self, group: Group) -> Tensor:
        """Sum the weighted deltas, scale once, add to the base."""
        scale = self.lambda_ / (sum(group.weights) if self.normalize else 1.0)
        return group.origin + scale * weighted_sum(group.deltas, group.weights)

    def factored(self, subject: Subject) -> bool:
        """Sums of products are products of stacked factors."""
        del subject
        return True

    def merge_low_rank(self, group: Group) -> LowRank:
        """Concatenate the factors."""
        assert group.low_rank is not None
        scale = self.lambda_ / (sum(group.weights) if self.normalize else 1.0)
        return concatenate(group.low_rank, [scale * weight for weight in group.weights])
