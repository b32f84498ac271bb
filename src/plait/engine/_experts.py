"""What a recipe calls an expert: a model, an adapter of the base, or a model with an adapter on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from plait.checkpoints import Checkpoint, LazyTensor, LowRankTensor, ZeroTensor, adapted, changes_alone, read_adapter
from plait.engine._plan import Job
from plait.errors import RecipeError
from plait.methods import Method
from plait.recipes import Chain, Recipe, Source
from plait.tensors.lowrank import LowRank

__all__ = ["by_factors", "check_factors", "low_rank_of", "open_experts", "split_reference", "untouched"]


def open_experts(
    source: Source, chain: Chain, base: Checkpoint | None, model: Callable[[str | Recipe, str], Checkpoint]
) -> dict[str, Checkpoint]:
    """Open the experts of a recipe; an adapter becomes a checkpoint with the names of the model it changes.

    An adapter of the recipe's base is its change as such where the methods work on changes; everywhere else it is the
    weight with the change in it.

    Raises:
        RecipeError: for an adapter without a model.
        AdapterError: for one that does not fit.
    """
    found: dict[str, Checkpoint] = {}
    for name, entry in source.recipe.experts.items():
        reference, adapter = entry.model, entry.adapter
        if adapter is None and isinstance(reference, str):
            reference, adapter = split_reference(reference, source.folder)
        where = source.document.where(("experts", name))
        if adapter is None:
            assert reference is not None  # the schema demands one of them
            opened = model(reference, name)
            if opened.adapter is None:
                if source.recipe.adapters == "factors":
                    raise RecipeError(
                        f"{where}{opened.label} holds no adapter, and adapters: factors merges nothing else."
                    )
                found[name] = opened
                continue
            on, file = base, opened
        else:
            on = model(reference, f"{name}/model") if reference is not None else base
            file = model(adapter, name)
            if file.adapter is None:
                raise RecipeError(f"{where}{file.label} holds no adapter.")
        if source.recipe.adapters == "factors":
            found[name] = file
            continue
        if on is None and source.recipe.output is not None:
            found[name] = changes_alone(read_adapter(file))
            continue
        if on is None:
            raise RecipeError(
                f"{where}{file.label} is an adapter, which changes a model and is none: name `base:`, or write "
                f"{{model: MODEL, adapter: {file.label}}}."
            )
        if on.adapter is not None:
            raise RecipeError(f"{where}{on.label} is an adapter; another cannot stand on it. Name the model instead.")
        alone = source.recipe.output is not None and all(step.cls.translates for step in chain.steps)
        changes = on is base and (chain.needs_base or alone)
        found[name] = adapted(read_adapter(file), on, "delta" if changes else "weight")
    return found


def split_reference(reference: str, folder: Path) -> tuple[str, str | None]:
    """Read MODEL+ADAPTER, unless a path of that name exists."""
    left, plus, right = reference.rpartition("+")
    if not plus or not left or not right or _exists(folder / reference):
        return reference, None
    return left, right


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def untouched(tensor: LazyTensor) -> bool:
    """Whether a tensor is a change of nothing."""
    return tensor.space == "delta" and not tensor.parts


def by_factors(tensor: LazyTensor) -> bool:
    """Whether a tensor is a change that is known by two factors."""
    return isinstance(tensor, ZeroTensor) or (isinstance(tensor, LowRankTensor) and tensor.stack == 1)


def check_factors(methods: Sequence[Method], name: str, tensors: Mapping[str, LazyTensor]) -> None:
    """Refuse experts that are no adapters for methods that merge adapters.

    Raises:
        RecipeError: naming the method, the tensor and the expert.
    """
    owners = [method.name for method in methods if method.adapters_only]
    wrong = [k for k, t in tensors.items() if k != "base" and len(t.shape) > 1 and not by_factors(t)]
    if owners and wrong:
        raise RecipeError(
            f"{owners[0]!r} merges the factors of adapters, but {name} of {wrong[0]!r} "
            f"({tensors[wrong[0]].source}) has none. Make an adapter of a full model with `plait adapter extract`."
        )
    if owners and len(methods) > 1:
        raise RecipeError(f"{owners[0]!r} merges the factors of adapters, which other steps do not keep: use it alone.")


def low_rank_of(job: Job, device: torch.device) -> tuple[LowRank, ...] | None:
    """The changes of a matrix (or a convolution) by their factors, if each expert's is known so."""
    if not job.deltas or len(job.entry.shape) < 2:
        return None
    found: list[Any] = [tensor.factors() for tensor in job.experts]
    if any(pair is None for pair in found):
        return None
    return tuple(LowRank(b.to(device, job.compute), a.to(device, job.compute)) for b, a in found)
