"""Layer swapping: outer layers from a language expert, middle layers from a task expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from plait.errors import RecipeError
from plait.methods._contract import Combiner, Group, Paper, Subject, Unit
from plait.methods._parameters import Doc, Fixed, NonNegativeInt

__all__ = ["LayerSwapping"]


@dataclass(frozen=True, kw_only=True)
class LayerSwapping(Combiner):
    """Build a model of the second expert's first and last layers and the first expert's middle layers.

    The first expert knows the task, the second the language, both fine-tuned from one base. Of the L layers the
    language expert gives the `bottom` first and the `top` last; `bottom_transition` layers above and
    `top_transition` layers below them are the mean of both; the task expert gives the rest. The defaults are the
    paper's for 32 layers; a language with little data likes more layers of its own.

    What the paper does with the tensors outside all layers (embeddings, final norm, head) is known only indirectly:
    `outer` chooses; by default they go with the layers next to them, to the language expert. `copy` rules of the
    recipe take them from the base.

    Paper: Bandarkar et al., "Layer Swapping for Zero-Shot Cross-Lingual Transfer in Large Language Models", ICLR 2025,
    arXiv 2410.01335.
    """

    name: ClassVar[str] = "layer_swapping"
    summary: ClassVar[str] = "outer layers from a language expert, middle layers from a task expert"
    formula: ClassVar[str] = "θ₂ in the outer layers, (θ₁ + θ₂)/2 in the transitions, θ₁ between"
    paper: ClassVar[Paper | None] = Paper(
        "Layer Swapping for Zero-Shot Cross-Lingual Transfer in Large Language Models",
        "Bandarkar et al.",
        2025,
        "2410.01335",
    )
    needs_base: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    min_experts: ClassVar[int] = 2
    max_experts: ClassVar[int | None] = 2
    identity: ClassVar[Any] = None
    example: ClassVar[Any] = {"bottom": 1, "top": 0, "bottom_transition": 1, "top_transition": 0}
    temporaries: ClassVar[tuple[float, float]] = (2.0, 0.0)

    bottom: Annotated[NonNegativeInt, Fixed(), Doc("first layers from the language expert")] = 5
    top: Annotated[NonNegativeInt, Fixed(), Doc("last layers from the language expert")] = 2
    bottom_transition: Annotated[NonNegativeInt, Fixed(), Doc("averaged layers above the bottom ones")] = 1
    top_transition: Annotated[NonNegativeInt, Fixed(), Doc("averaged layers below the top ones")] = 1
    outer: Annotated[Literal["language", "task", "average"], Doc("embeddings, final norm, head: whose they are")] = (
        "language"
    )

    def unit(self, subject: Subject) -> Unit:
        """Elementwise; the depth of the model is known here first, so this is where it is checked.

        Raises:
            RecipeError: if the model has fewer layers than are asked for.
        """
        wanted = self.bottom + self.bottom_transition + self.top_transition + self.top
        role, stack = subject.role, subject.role.stack or "the model"
        if role.layer is not None and wanted > role.layers:
            raise RecipeError(
                f"'layer_swapping' takes {wanted} layers for bottom, top and transitions, but {stack} has {role.layers}"
                f" (tensor {subject.name}); lower them, or take these tensors with a copy rule."
            )
        return "element"

    def _owner(self, subject: Subject) -> str:
        role = subject.role
        if role.layer is None:
            return self.outer
        outside = min(role.layer - self.bottom, role.layers - 1 - role.layer - self.top)
        if outside < 0:
            return "language"
        below = role.layer - self.bottom < self.bottom_transition
        above = role.layers - 1 - role.layer - self.top < self.top_transition
        return "average" if below or above else "task"

    def merge(self, group: Group) -> Tensor:
        """Take the tensor from its owner."""
        task, language = group.experts
        match self._owner(group.subject):
            case "task":
                return task.clone()
            case "language":
                return language.clone()
            case _:
                return (task + language) * 0.5
