"""Models and methods on which compiled loops are compared with torch, here and elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["VARIANTS", "State", "models", "same"]

State = dict[str, Tensor]


def models(dtype: torch.dtype = torch.bfloat16, *shapes: tuple[int, ...]) -> list[State]:
    rng = torch.Generator().manual_seed(5)
    shapes = shapes or ((300, 500), (70_001,), (7,), ())
    base = {f"layers.{i}.w.weight": 0.05 * torch.randn(s, generator=rng) for i, s in enumerate(shapes)}
    found = [base]
    for _ in range(3):
        found.append({k: v + 0.01 * torch.randn(v.shape, generator=rng) for k, v in base.items()})
    return [{k: v.to(dtype) for k, v in state.items()} for state in found]


def same(a: State, b: State) -> bool:
    return all(torch.equal(a[k].reshape(-1).view(torch.uint8), b[k].reshape(-1).view(torch.uint8)) for k in b)


VARIANTS: list[tuple[Any, dict[str, Any]]] = [
    ("linear", {}),
    ("ties", {}),
    ([{"ties": {"scope": "tensor", "trim": "exact", "rescale": "l1", "combine": "max"}}], {}),
    ([{"ties": {"vote": "frequency", "combine": "sum"}}], {}),
    ("dare_ties", {"seed": 11}),
    ("dare_linear", {"seed": 12}),
    ([{"breadcrumbs": {"scope": "tensor"}}, "ties"], {}),
    ([{"dare": {"strategy": "magnitude", "rescale": "l1"}}, "task_arithmetic"], {}),
    ("sce", {}),
    ("karcher", {}),
    ("model_stock", {}),
    (["task_arithmetic", "lines"], {}),
    ("consensus_ta", {}),
    ("ram_plus", {}),
    ("localize_stitch", {}),
]
