"""VaRM: weights from the variation ratio of each parameter matrix (the first FuseChat)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.methods._contract import Combiner, Group, Paper, Scope, Subject
from plait.methods._parameters import Doc
from plait.tensors.consensus import weighted_sum
from plait.tensors.summaries import ByKey
from plait.tensors.sums import Each, count, norm1, norm2_squared

__all__ = ["Varm"]

_FLOOR = 1e-13  # of the authors' denominators, entry by entry


@dataclass(frozen=True, kw_only=True)
class Varm(Combiner):
    """Weigh each expert by how much it changed this matrix: θ = θ₀ + Σ Wⱼτⱼ with Wⱼ = mean τⱼ² / Σₖ mean τₖ².

    What did not change in any expert stays at the base. `granularity` says over what the change is averaged: this
    matrix; the tensors of its `module` (self_attn, mlp, …) or of its `layer`, each tensor counting the same (what lies
    outside all layers is averaged evenly); the whole `model`; the model `total`, where it is multiplied with the share
    of entries that changed at all; or each `parameter`, an entry, by itself.

    Paper: Wan et al., "FuseChat: Knowledge Fusion of Chat Models", 2024, arXiv 2402.16107 (first version).
    """

    name: ClassVar[str] = "varm"
    summary: ClassVar[str] = "weigh each expert by how much it changed the matrix"
    formula: ClassVar[str] = "θ₀ + Σ Wⱼτⱼ, Wⱼ = mean τⱼ² / Σₖ mean τₖ²"
    paper: ClassVar[Paper | None] = Paper(
        "FuseChat: Knowledge Fusion of Chat Models", "Wan et al.", 2024, "2402.16107", "fanqiwan/FuseLLM"
    )
    weighted: ClassVar[bool] = False
    cost: ClassVar[Any] = "survey"
    temporaries: ClassVar[tuple[float, float]] = (2.0, 1.0)

    granularity: Annotated[
        Literal["matrix", "module", "layer", "model", "total", "parameter"], Doc("what shares one set of weights")
    ] = "matrix"
    measure: Annotated[Literal["square", "abs"], Doc("change of an entry: its square or its magnitude")] = "square"
    zero_unmoved: Annotated[
        bool, Doc("repeat the authors' bug at parameter level: an entry that no expert moved becomes 0")
    ] = False

    @property
    def rounds(self) -> int:
        """One for the amounts of change."""
        return int(self.granularity != "parameter")

    @property
    def survey_scope(self) -> Scope:
        """Only a matrix can be weighed by itself."""
        return "tensor" if self.granularity == "matrix" else "model"

    def _part(self, subject: Subject) -> tuple[str, ...] | None:
        """The part of the model whose tensors share their weights; None for an even average."""
        if self.granularity not in ("layer", "module"):
            return ()
        role = subject.role
        if role.layer is None:
            return (subject.name.rpartition(".")[0],) if self.granularity == "module" else None
        if self.granularity == "layer":
            return (role.stack, str(role.layer))
        inside = f".{subject.name}".partition(f"{role.stack and '.'}{role.stack}.{role.layer}.")[2]
        return (role.stack, str(role.layer), inside.partition(".")[0])

    def survey(self, group: Group) -> ByKey:
        """Σ|τ|ᵖ and the number of changed entries, per expert, tensor and part of the model."""
        size = norm2_squared if self.measure == "square" else norm1
        found = Each(tuple(Each((size(d), count(d != 0))) for d in group.deltas))
        # parts average over tensors, so each is kept apart with its length; elsewhere the length cancels
        kept_apart = (group.name, group.subject.numel) if self.granularity in ("layer", "module") else ("", 1)
        return ByKey({self._part(group.subject): ByKey({kept_apart: found})})

    def _weights(self, group: Group) -> list[float]:
        part = self._part(group.subject)
        amounts = [0.0] * group.count
        if part is not None:
            for (_, numel), found in group.facts[0][part].items.items():
                for i, (size, changed) in enumerate(each.items for each in found.items):
                    amounts[i] += float(size) / numel * (changed if self.granularity == "total" else 1)
        total = sum(amounts)
        return [amount / total if total > 0 else 1.0 / group.count for amount in amounts]

    def merge(self, group: Group) -> Tensor:
        """Average the task vectors with the weights of their part."""
        if self.granularity != "parameter":
            return group.origin + weighted_sum(group.deltas, self._weights(group))
        sizes = [delta.square() if self.measure == "square" else delta.abs() for delta in group.deltas]
        total = sum(sizes[1:], sizes[0])
        if self.zero_unmoved:
            total = total.clamp(min=_FLOOR)
            products = [size / total * expert for size, expert in zip(sizes, group.experts, strict=True)]
            return sum(products[1:], products[0])
        total = torch.where(total > 0, total, 1.0)
        products = [size / total * delta for size, delta in zip(sizes, group.deltas, strict=True)]
        return group.origin + sum(products[1:], products[0])
