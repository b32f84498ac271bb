"""Layer stacking: slices of several models, renumbered, seen as one checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from plait.architectures import layer_of, resize_depth, roles_of, with_layer
from plait.checkpoints import Checkpoint, LazyTensor
from plait.errors import IncompatibleModelsError, RecipeError

__all__ = ["stack_slices"]


def stack_slices(parts: Sequence[tuple[Checkpoint, tuple[int, int]]], where: Sequence[str]) -> Checkpoint:
    """Stack layers [first, last) of each part in order, numbered anew from 0.

    What comes before the layers (embeddings) is the first part's, what comes after (final norm, head) the last's.

    Raises:
        RecipeError: for a range that is empty or reaches beyond a model.
        IncompatibleModelsError: if the models have no common list of layers.
    """
    stacks = [_main_stack(checkpoint) for checkpoint, _ in parts]
    if len({name for name, _ in stacks}) > 1:
        listed = ", ".join(f"{name} in {c.label}" for (name, _), (c, _) in zip(stacks, parts, strict=True))
        raise IncompatibleModelsError(f"the models keep their layers under different names: {listed}.")
    stack = stacks[0][0]
    tensors: dict[str, LazyTensor] = {}
    origin: list[int] = []
    outside = _outside(parts, stack)
    tensors |= {name: t for name, (t, early) in outside.items() if early}
    for (checkpoint, (first, last)), (_, count), place in zip(parts, stacks, where, strict=True):
        if not 0 <= first < last <= count:
            raise RecipeError(
                f"{place}layers [{first}, {last}] of {checkpoint.label}: it has {count} layers; give [first, last) "
                f"with 0 ≤ first < last ≤ {count}."
            )
        shift = len(origin) - first
        for name, tensor in checkpoint.tensors.items():
            found = layer_of(name)
            if found is not None and found[0] == stack and first <= found[1] < last:
                tensors[with_layer(name, found[1] + shift)] = tensor
        origin += range(first, last)
    tensors |= {name: t for name, (t, early) in outside.items() if not early}
    head = parts[0][0]
    config: dict[str, Any] | None = None
    if head.config is not None:
        config = resize_depth(head.config, origin)
    return Checkpoint(
        "stack",
        tensors,
        config=config,
        folder=head.folder,
        hub_id=head.hub_id,
        revision=head.revision,
        files=head.files,
    )


def _main_stack(checkpoint: Checkpoint) -> tuple[str, int]:
    roles = roles_of(checkpoint.tensors)
    sizes: Counter[str] = Counter()
    lengths: dict[str, int] = {}
    for name, role in roles.items():
        if role.layer is not None:
            sizes[role.stack] += checkpoint.tensors[name].numel
            lengths[role.stack] = role.layers
    if not sizes:
        raise IncompatibleModelsError(f"{checkpoint.label} has no numbered layers to slice.")
    ranked = sizes.most_common(2)
    if len(ranked) == 2 and ranked[1][1] > ranked[0][1] // 4:
        raise IncompatibleModelsError(
            f"{checkpoint.label} has several towers of layers ({ranked[0][0]}, {ranked[1][0]}); plait stacks layers of "
            "models with one."
        )
    return ranked[0][0], lengths[ranked[0][0]]


def _outside(parts: Sequence[tuple[Checkpoint, tuple[int, int]]], stack: str) -> dict[str, tuple[LazyTensor, bool]]:
    """Tensors outside the stacked layers: name → (tensor, whether it comes before the layers)."""
    found: dict[str, tuple[LazyTensor, bool]] = {}
    (first, _), (last, _) = parts[0], parts[-1]
    for checkpoint, wanted in ((first, True), (last, False)):
        for name, role in roles_of(checkpoint.tensors).items():
            early = role.layer is not None or role.depth < 0.5  # another tower is the first part's, whole
            if role.stack != stack and early is wanted and name not in checkpoint.ties:
                found[name] = (checkpoint.tensors[name], early)
    return found
