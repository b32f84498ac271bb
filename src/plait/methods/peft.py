"""PEFT's own ways to combine adapters, for compatibility: most of them are no merge of the changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.errors import RecipeError
from plait.methods._contract import Group, Paper
from plait.methods._low_rank import LowRankCombiner
from plait.methods._parameters import Density, Doc, PositiveInt
from plait.tensors.lowrank import LowRank, concatenate, from_svd
from plait.tensors.spectral import svd

__all__ = ["Peft"]

Combination = Literal[
    "linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune", "magnitude_prune_svd",
    "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Peft(LowRankCombiner):
    """Combine adapters as `add_weighted_adapter` of the library PEFT does (its version 0.21).

    `cat` is the exact weighted sum Σ wᵢΔᵢ, `svd` its truncation. The others without `_svd` combine the factors A and B
    separately, each scaled by √|wᵢsᵢ|, so that the product holds Bᵢ Aⱼ of different adapters: it is no merge of the
    changes, and can be further from their weighted sum than the sum is long. With `_svd` the same is done to the
    changes themselves, which are then truncated. `task_arithmetic`, `ties` and `dare_ties` merge the true changes.

    Older versions of PEFT (up to 0.20) scale twice by alpha/r in the `svd` family; this is not repeated. Random masks
    are drawn as everywhere here, and differ from PEFT's.
    """

    name: ClassVar[str] = "peft"
    summary: ClassVar[str] = "adapters combined as PEFT's add_weighted_adapter does, for compatibility"
    formula: ClassVar[str] = "linear: (Σ √|wᵢsᵢ| Bᵢ)(Σ ±√|wᵢsᵢ| Aᵢ)"
    paper: ClassVar[Paper | None] = Paper(
        "PEFT: State-of-the-art Parameter-Efficient Fine-Tuning", "Mangrulkar et al.", 2022, "", "huggingface/peft"
    )
    identity: ClassVar[Any] = {}

    combination: Annotated[Combination, Doc("PEFT's combination_type")] = "linear"
    density: Annotated[Density, Doc("share of entries that is kept, where entries are pruned")] = 0.5
    rank: Annotated[PositiveInt | None, Doc("rank after an SVD (svd_rank); none: the largest")] = None
    vote: Annotated[Literal["total", "frequency"], Doc("majority_sign_method: what elects signs, in ties")] = "total"

    @property
    def random(self) -> bool:
        """Only DARE draws."""
        return self.combination.startswith("dare") and self.density < 1

    def update(self, group: Group) -> LowRank:
        """Combine."""
        parts = [part for part in group.low_rank or () if part.rank]
        chosen = [i for i, part in enumerate(group.low_rank or ()) if part.rank]
        weights = [group.weights[i] for i in chosen]
        if not parts:
            return concatenate(group.low_rank or (), group.weights)
        kind = "linear" if len(parts) == 1 else self.combination
        if kind == "cat":
            return concatenate(parts, weights)
        if kind.endswith("svd"):
            return self._truncated(group, parts, weights, chosen, kind.removesuffix("svd").removesuffix("_"))
        if len({part.rank for part in parts}) > 1:
            raise RecipeError(
                f"'peft' with combination: {kind} adds factors up, and the adapters of {group.name} have the ranks "
                f"{', '.join(str(p.rank) for p in parts)}. Use cat, svd or one of the others that end in _svd."
            )
        roots = [math.sqrt(abs(w)) for w in weights]
        signs = [math.copysign(1.0, w) for w in weights]
        a = self._combined(
            group, [p.a for p in parts], [r * s for r, s in zip(roots, signs, strict=True)], chosen, kind
        )
        b = self._combined(group, [p.b for p in parts], roots, chosen, kind)
        return LowRank(b, a)

    def _truncated(
        self, group: Group, parts: Sequence[LowRank], weights: Sequence[float], chosen: Sequence[int], kind: str
    ) -> LowRank:
        rank = self.rank or max(part.rank for part in parts)
        if not kind:
            return from_svd(concatenate(parts, weights).svd().top(rank))
        dense = self._combined(group, [part.dense() for part in parts], weights, chosen, kind)
        return from_svd(svd(dense).top(rank))

    def _combined(
        self, group: Group, values: Sequence[Tensor], weights: Sequence[float], chosen: Sequence[int], kind: str
    ) -> Tensor:
        """One of PEFT's operations on tensors of one shape."""
        if kind == "linear":
            return _sum(values, weights)
        if kind.startswith("dare"):
            pruned = [self._drop(group, value, i) for value, i in zip(values, chosen, strict=True)]
        else:
            pruned = [_largest(value, self.density) for value in values]
        if not kind.endswith("ties"):
            return _sum(pruned, weights)
        total = torch.stack([p if self.vote == "total" else p.sign() for p in pruned]).sum(dim=0)
        elected = torch.where(total >= 0, 1.0, -1.0)
        masks = [(p.sign() == elected).to(p.dtype) for p in pruned]
        merged = _sum([p * mask for p, mask in zip(pruned, masks, strict=True)], weights)
        return merged / torch.stack(masks).sum(dim=0).clamp_min(1.0)

    def _drop(self, group: Group, values: Tensor, expert: int) -> Tensor:
        drawn = group.draws.uniform(group.names[expert], 0, values.numel()).to(values.device).view_as(values)
        return values * (drawn < self.density) / self.density


def _sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([value * weight for value, weight in zip(values, weights, strict=True)]).sum(dim=0)


def _largest(values: Tensor, density: float) -> Tensor:
    """Zero all but int(density · numel) entries of the largest magnitude."""
    kept = int(density * values.numel())
    if density >= 1:
        return values
    flat = values.reshape(-1)
    found = torch.zeros_like(flat)
    places = flat.abs().topk(kept).indices
    found[places] = flat[places]
    return found.view_as(values)
