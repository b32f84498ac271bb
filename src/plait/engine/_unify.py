"""Models of one recipe that write their tensors differently, seen in the names of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from plait.architectures import View, view_of
from plait.checkpoints import Checkpoint, seen_as, with_tensors
from plait.errors import IncompatibleModelsError, RecipeError, shorten, suggest
from plait.recipes import Source

__all__ = ["United", "unify"]

Shapes = dict[str, tuple[int, ...]]


@dataclass
class United:
    """Models with one set of names.

    Attributes:
        models: name in the recipe → the model; `base` among them, if there is one.
        first: the model whose names, config and files count.
        rest: its tensors that are kept as they are, because they lie in other towers or components.
        notes: what was found, one sentence each.
    """

    models: dict[str, Checkpoint]
    first: str
    rest: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)


def unify(source: Source, models: Mapping[str, Checkpoint]) -> United:
    """See every model in the names of the one whose files are taken.

    That is `files_from`; else the first of `models`, or the first one that all others are a part of.

    Raises:
        RecipeError: for names in the recipe that nothing is known by.
        IncompatibleModelsError: if a model could stand in several places of another.
    """
    recipe, where = source.recipe, source.document.where
    first = recipe.files_from or next(iter(models))
    if first not in models:
        raise RecipeError(f"{where(('files_from',))}files_from names {first!r}; models are {', '.join(models)}.")
    if recipe.components or any(_pipeline(model) for model in models.values()):
        return _components(source, models, first)
    if recipe.files_from is None and not recipe.drop and not recipe.copy_ and len(models) > 1:
        first = _largest(models, first, recipe.tower)
    return _in_one(models, first, recipe.tower)


def _shapes(checkpoint: Checkpoint) -> Shapes:
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}


def _largest(models: Mapping[str, Checkpoint], first: str, tower: str | None) -> str:
    """The first model that every other one is a part of, where `first` itself is but one tower of it."""
    names = set(models[first].tensors)
    if all(set(model.tensors) <= names for model in models.values()):
        return first
    for key, model in models.items():
        if key == first:
            continue
        whole = _shapes(model)
        try:
            views = {k: view_of(_shapes(m), whole, tower, m.label) for k, m in models.items() if k != key}
        except IncompatibleModelsError:
            continue
        if views[first].tower and not any(_lost(view, models[k]) for k, view in views.items()):
            return key
    return first


def _lost(view: View, model: Checkpoint) -> bool:
    """Whether a model has tensors without a place in the other, tied copies apart."""
    return any(name not in model.ties for name in view.unseen)


def _in_one(models: Mapping[str, Checkpoint], first: str, tower: str | None, inside: str = "") -> United:
    """View all models in the names of `first`; `inside` is the component that they are viewed in."""
    whole = _shapes(models[first])
    found = United({}, first)
    rests: list[frozenset[str]] = []
    placed = False
    for name, model in models.items():
        if name == first or set(model.tensors) == set(whole):
            found.models[name] = model
            continue
        view = view_of(_shapes(model), whole, tower, f"{name} ({model.label})")
        placed = placed or bool(view.tower)
        found.models[name] = model if view.plain else seen_as(model, view, whole)
        if view.rest:
            rests.append(view.rest)
        if not view.plain:
            within = f"{view.tower} of {first}" if view.tower else first
            found.notes.append(f"{name} is seen in the names of {within}: {', '.join(view.facts)}.")
    if tower is not None and not placed:
        raise RecipeError(
            f"nothing fits under `tower: {tower}` in {first} ({models[first].label}); leave `tower` out, or give the "
            f"prefix in front of a list of layers as `plait inspect` shows it."
        )
    # kept without being asked for only where no other model says anything about it
    rest = frozenset.union(*rests) if rests else frozenset()
    kept = {n for n in rest if not any(n in m.tensors for k, m in found.models.items() if k != first)}
    found.rest = frozenset(kept)
    if kept:
        tops = dict.fromkeys(_top(name, inside) for name in whole if name in kept)
        found.notes.append(f"{len(kept)} tensors in other parts of {first} are kept as they are: {', '.join(tops)}.")
    return found


def _top(name: str, inside: str) -> str:
    pieces = name.removeprefix(inside).split(".")
    return ".".join(pieces[: 2 if pieces[0] in ("model", "base_model") else 1])


def _pipeline(checkpoint: Checkpoint) -> bool:
    return any(component.chosen for component in checkpoint.components.values())


def _components(source: Source, models: Mapping[str, Checkpoint], first: str) -> United:
    """Merge the components that the recipe names; the others are the first model's, as they are."""
    recipe, where = source.recipe, source.document.where
    donor = models[first]
    if not donor.components:
        trees = [name for name, model in models.items() if model.components]
        hint = f" Give it with `files_from: {trees[0]}`." if trees else ""
        raise RecipeError(
            f"{where(('components',))}{first} ({donor.label}) is no folder of components: none can be named.{hint}"
        )
    wanted = [recipe.components] if isinstance(recipe.components, str) else list(recipe.components or ())
    if not wanted:
        raise RecipeError(
            f"{where(())}{first} ({donor.label}) is a pipeline: say which of its components are merged, e.g. "
            f"`components: [{next(iter(donor.components))}]`. It has {', '.join(donor.components)}; the others are "
            "kept as they are."
        )
    for name in wanted:
        if name not in donor.components:
            raise RecipeError(
                f"{where(('components',))}{first} ({donor.label}) has no component {name!r} with weights; it has "
                f"{', '.join(donor.components)}.{suggest(name, donor.components)}"
            )
    rest = frozenset(n for n in donor.tensors if not n.startswith(tuple(f"{c}/" for c in wanted)))
    found = United(dict(models), first, rest)
    for key, model in models.items():
        if key != first:
            found.models[key] = _chosen(key, model, wanted, donor)
    for component in wanted:
        inner = {k: _only(m, component) for k, m in found.models.items()}
        united = _in_one(inner, first, recipe.tower if len(wanted) == 1 else None)
        found.notes += [f"{component}: {note}" for note in united.notes]
        found.rest |= {f"{component}/{name}" for name in united.rest}
        for key, model in united.models.items():
            others = {n: t for n, t in found.models[key].tensors.items() if not n.startswith(f"{component}/")}
            own = {f"{component}/{n}": t for n, t in model.tensors.items()}
            if key != first:
                found.models[key] = with_tensors(found.models[key], others | own)
    kept = dict.fromkeys(name.partition("/")[0] for name in rest)
    if kept:
        found.notes.append(f"merged: {', '.join(wanted)}; kept as in {first}: {', '.join(kept)}.")
    return found


def _only(model: Checkpoint, component: str) -> Checkpoint:
    """A component, in its own names."""
    prefix = f"{component}/"
    tensors = {n.removeprefix(prefix): t for n, t in model.tensors.items() if n.startswith(prefix)}
    only = with_tensors(model, tensors)
    found = model.components.get(component)
    only.config = found.config if found is not None else model.config
    return only


def _chosen(name: str, model: Checkpoint, wanted: list[str], donor: Checkpoint) -> Checkpoint:
    """The named components of a pipeline; a model that is one component takes its place."""
    if model.components:
        absent = [c for c in wanted if c not in model.components]
        if absent:
            raise IncompatibleModelsError(
                f"{name} ({model.label}) lacks components that are to be merged:\n{shorten(absent)}\nIt has "
                f"{', '.join(model.components)}."
            )
        keep = tuple(f"{c}/" for c in wanted)  # the others only as far as a `copy` rule may ask for them
        kept = {n: t for n, t in model.tensors.items() if n.startswith(keep) or n in donor.tensors}
        return with_tensors(model, kept)
    if len(wanted) > 1:
        raise IncompatibleModelsError(
            f"{name} ({model.label}) is a single model, and {len(wanted)} components are to be merged: give a pipeline "
            f"with {', '.join(wanted)}, or merge one component at a time."
        )
    return with_tensors(model, {f"{wanted[0]}/{n}": t for n, t in model.tensors.items()})
