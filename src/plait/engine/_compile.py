"""Recipe → plan: open the models that a recipe names, as often as it names them, and have their tensors aligned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from plait.checkpoints import Checkpoint
from plait.engine._align import align
from plait.engine._changes import as_adapter, as_files, only_changes
from plait.engine._experts import open_experts
from plait.engine._plan import Plan
from plait.engine._slices import stack_slices
from plait.errors import RecipeError
from plait.recipes import Chain, Recipe, Source, load_recipe, resolve_chain

__all__ = ["Opener", "compile_recipe"]


@dataclass
class Opener:
    """Opens each model once, however often the recipe names it, and records it under its first name.

    Attributes:
        folder: where relative paths start.
        state_dicts: models in memory, by the reference the recipe uses for them.
        inputs: what was opened.
    """

    folder: Path
    state_dicts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    inputs: dict[str, Checkpoint] = field(default_factory=dict)
    _by_reference: dict[str, Checkpoint] = field(default_factory=dict)

    def open(self, reference: str, name: str) -> Checkpoint:
        """Return the checkpoint that a reference means."""
        known = self._by_reference.get(reference)
        if known is None:
            given: Any = self.state_dicts.get(reference, reference)
            known = Checkpoint.open(given, relative_to=self.folder)
            if name in self.inputs:
                raise RecipeError(
                    f"two models are called {name!r}; rename one (a name with '/' can clash with a nested recipe's)."
                )
            self._by_reference[reference] = known
            self.inputs[name] = known
        return known


def compile_recipe(given: Any, *, state_dicts: Mapping[str, Mapping[str, Tensor]] | None = None) -> Plan:
    """Read headers and return the plan.

    Args:
        given: a recipe in any form `load_recipe` takes.
        state_dicts: models in memory that the recipe names.

    Raises:
        PlaitError: every subclass that headers can show; see `plait.errors`.
    """
    source = load_recipe(given)
    return _compile(source, Opener(source.folder, state_dicts or {}), "")


def _compile(source: Source, opener: Opener, prefix: str) -> Plan:
    recipe = source.recipe
    chain = resolve_chain(source)
    nested: list[Plan] = []

    def model(reference: str | Recipe, name: str) -> Checkpoint:
        if isinstance(reference, str):
            return opener.open(reference, prefix + name)
        from plait.engine._nested import nested_checkpoint

        inner = _compile(Source(reference, folder=source.folder), opener, f"{prefix}{name}/")
        nested.append(inner)
        return nested_checkpoint(inner, name)

    if recipe.slices is not None:
        chain, models, base = _stacked(source, chain, model)
    else:
        base = model(recipe.base, "base") if recipe.base is not None else None
        models = open_experts(source, chain, base, model)
    _check_counts(source, chain, models, base)
    if recipe.adapters == "factors":
        return as_files(align(source, chain, models, None, dict(opener.inputs), nested, bool(prefix)))
    if recipe.output is not None and recipe.tokenizer is not None:
        raise RecipeError(
            f"{source.document.where(('tokenizer',))}an adapter has no rows for new tokens: leave out `tokenizer`, or "
            "write a model."
        )
    if recipe.output is not None:
        changes = only_changes(source, chain, models, base)
        plain = Source(recipe.model_copy(update={"dtype": "float32"}), source.document, source.folder)
        plan = align(plain, chain, changes.models, changes.base, dict(opener.inputs), nested, False, changes.donor)
        return as_adapter(replace(plan, source=source, origin=changes.origin, donor=changes.donor))
    if recipe.tokenizer is not None or recipe.chat_template is not None:
        from plait.engine._vocabulary import align_tokens

        spoken = align_tokens(source, base, models, model)
        plan = align(source, chain, spoken.models, spoken.base, dict(opener.inputs), nested, bool(prefix))
        notes = (*plan.notes, *spoken.notes)
        return replace(plan, files=spoken.files, notes=notes, tokens=spoken.stamp)
    return align(source, chain, models, base, dict(opener.inputs), nested, bool(prefix))


def _stacked(source: Source, chain: Chain, model: Any) -> tuple[Chain, dict[str, Checkpoint], None]:
    recipe, where = source.recipe, source.document.where
    if chain.combiner.cls.max_experts != 1 or recipe.experts or recipe.base is not None:
        raise RecipeError(
            f"{where(('slices',))}slices stack layers as they are: use method: passthrough, without base and experts. "
            "To merge stacks, make each a nested recipe."
        )
    assert recipe.slices is not None
    if not recipe.slices:
        raise RecipeError(f"{where(('slices',))}slices is empty; give at least one model with its layers.")
    parts = [(model(s.model, f"slice{i}"), s.layers) for i, s in enumerate(recipe.slices)]
    stack = stack_slices(parts, [where(("slices", i)) for i in range(len(parts))])
    return Chain(chain.steps, chain.weights, ("stack",)), {"stack": stack}, None


def _check_counts(source: Source, chain: Chain, models: Mapping[str, Checkpoint], base: Checkpoint | None) -> None:
    where = source.document.where(("experts",))
    cls, count = chain.combiner.cls, len(models)
    needing = [step.cls.name for step in chain.steps if step.cls.needs_base]
    if needing and base is None and source.recipe.output is None:
        raise RecipeError(
            f"{source.document.where(('method',))}{needing[0]!r} works on task vectors and needs `base:`, the "
            "model the experts were fine-tuned from."
        )
    if count < cls.min_experts or (cls.max_experts is not None and count > cls.max_experts):
        most = cls.max_experts
        want = (
            f"exactly {most}"
            if most == cls.min_experts
            else f"at most {most}"
            if most and count > most
            else f"at least {cls.min_experts}"
        )
        hint = (
            " To interpolate from the base, name it among the experts too." if count == 1 and base is not None else ""
        )
        raise RecipeError(
            f"{where}{cls.name!r} merges {want} expert{'s' if want[-1] != '1' else ''}; {count} given.{hint}"
        )
