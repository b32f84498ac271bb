"""Experts of a layer as one fused parameter, as libraries hold them, and as single weights, as most files do."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["expert_modules", "split_experts"]

#: fused parameter → weights of one expert that it holds below each other, by the names of several families
_PIECES = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
_EXPERT = re.compile(r"(.+\.experts)\.\d+\..+")


def expert_modules(names: Collection[str]) -> set[str]:
    """The modules (`….mlp.experts`) whose experts stand in these names one by one."""
    return {found.group(1) for name in names if (found := _EXPERT.fullmatch(name))}


def split_experts(module: str, names: Collection[str]) -> dict[str, list[tuple[str, ...]]]:
    """Fused parameter of a module of experts → for each expert, the names of the weights that it is made of."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for parameter, families in _PIECES.items():
        for pieces in families:
            experts: list[tuple[str, ...]] = []
            while all(f"{module}.{len(experts)}.{piece}.weight" in names for piece in pieces):
                experts.append(tuple(f"{module}.{len(experts)}.{piece}.weight" for piece in pieces))
            if experts:
                found[f"{module}.{parameter}"] = experts
    return found
