"""Recipe → plan: open the models, align their tensors by name, and find every error that headers can show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.architectures import Role, roles_of
from plait.checkpoints import Checkpoint, Entry, Layout, LazyTensor, is_float, output_config, parse_dtype, promote
from plait.engine._changes import as_adapter, as_files, only_changes
from plait.engine._experts import check_factors, open_experts, untouched
from plait.engine._plan import Job, Plan
from plait.engine._slices import stack_slices
from plait.engine._unify import unify
from plait.errors import IncompatibleModelsError, RecipeError, shorten, suggest
from plait.recipes import Chain, Recipe, Source, load_recipe, parse_size, resolve_chain, selects

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
        return as_files(_align(source, chain, models, None, dict(opener.inputs), nested, bool(prefix)))
    if recipe.output is not None and recipe.tokenizer is not None:
        raise RecipeError(
            f"{source.document.where(('tokenizer',))}an adapter has no rows for new tokens: leave out `tokenizer`, or "
            "write a model."
        )
    if recipe.output is not None:
        changes = only_changes(source, chain, models, base)
        plain = Source(recipe.model_copy(update={"dtype": "float32"}), source.document, source.folder)
        plan = _align(plain, chain, changes.models, changes.base, dict(opener.inputs), nested, False, changes.donor)
        return as_adapter(replace(plan, source=source, origin=changes.origin, donor=changes.donor))
    if recipe.tokenizer is not None or recipe.chat_template is not None:
        from plait.engine._vocabulary import align_tokens

        spoken = align_tokens(source, base, models, model)
        plan = _align(source, chain, spoken.models, spoken.base, dict(opener.inputs), nested, bool(prefix))
        notes = (*plan.notes, *spoken.notes)
        return replace(plan, files=spoken.files, notes=notes, tokens=spoken.stamp)
    return _align(source, chain, models, base, dict(opener.inputs), nested, bool(prefix))


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


def _align(
    source: Source,
    chain: Chain,
    models: Mapping[str, Checkpoint],
    base: Checkpoint | None,
    inputs: dict[str, Checkpoint],
    nested: list[Plan],
    inner: bool,
    whole_model: Checkpoint | None = None,
) -> Plan:
    recipe, where = source.recipe, source.document.where
    united = unify(source, {**({"base": base} if base is not None else {}), **models})
    every, first, donor = united.models, united.first, united.models[united.first]
    base, models = every.get("base"), {name: every[name] for name in models}
    used = {**({"base": base} if base is not None and chain.needs_base else {}), **models}
    known = [*every.values(), *([whole_model] if whole_model is not None else [])]
    roles = roles_of(name for checkpoint in known for name in checkpoint.tensors)
    copied, dropped = _picked(source, every, roles)
    copied = dict.fromkeys((n for n in donor.tensors if n in united.rest and n not in dropped), first) | copied
    quantised = [f"{key} is stored as {c.quantized}: read with its scales." for key, c in every.items() if c.quantized]
    notes = [*source.notes, *quantised, *united.notes]
    if base is not None and not chain.needs_base:
        methods = " and ".join(step.cls.name for step in chain.steps)
        notes.append(f"{methods} does not use the base: it only names the tensors and gives config and tokenizer.")
    names = _names(first, every, used, copied, dropped, notes)
    experts = tuple(models)
    given = parse_dtype(recipe.dtype) if recipe.dtype else None
    wanted = torch.float32 if inner and given is None else given
    jobs: list[Job] = []
    problems: list[str] = []
    whole: list[str] = []
    unchanged: list[str] = []
    for name in names:
        role = roles[name]
        if name in copied:
            own = name in united.rest and donor.components  # a component that nobody asked to change
            jobs.append(_copy(every[copied[name]].tensors[name], name, role, None if own else given, copied[name]))
            continue
        found = {key: checkpoint.find(name) for key, checkpoint in used.items()}
        missing = [f"{key} ({used[key].label})" for key, tensor in found.items() if tensor is None]
        if missing:
            problems.append(f"{name}: missing from {', '.join(missing)}")
            continue
        tensors = {key: tensor for key, tensor in found.items() if tensor is not None}
        shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
        if len({tuple(s) for s in shapes.values()}) > 1:
            listed = ", ".join(f"{shape} in {key} ({tensors[key].source})" for key, shape in shapes.items())
            advice = (
                "; the vocabularies differ, which `tokenizer: union` or `base` aligns"
                if role.kind in ("embedding", "head")
                else ""
            )
            problems.append(f"{name}: shapes differ: {listed}{advice}")
            continue
        kinds = {is_float(t.dtype) for t in tensors.values()}
        if kinds == {True, False}:
            listed = ", ".join(f"{t.dtype} in {key}" for key, t in tensors.items())
            problems.append(f"{name}: numbers in one model, integers in another: {listed}")
            continue
        if kinds == {False}:
            owner = first if first in tensors else next(iter(tensors))
            jobs.append(_copy(tensors[owner], name, role, None, owner))
            whole.append(name)
            continue
        if all(untouched(tensors[key]) for key in experts) and "base" in tensors:
            jobs.append(_copy(tensors["base"], name, role, given, "base"))
            unchanged.append(name)
            continue
        jobs.append(_merge(chain, name, role, tensors, experts, wanted, given))
    _raise_problems(problems, every)
    if whole:
        notes.append(f"{len(whole)} integer or boolean tensors are copied from {first}, never averaged.")
    if unchanged:
        notes.append(
            f"{len(unchanged)} tensors are changed by no adapter: they are the base's, and take no part in counting."
        )
    unused = chain.unused_rules()
    if unused:
        raise RecipeError(
            f"{where(('parameters',))}these rules pick no tensor of the models:\n{shorten(unused)}\n"
            "See the names and roles with `plait inspect MODEL`."
        )
    _check_constant(chain, jobs)
    if not jobs:
        raise IncompatibleModelsError("nothing is left to merge: every tensor is dropped.")
    size = parse_size(recipe.shard_size, "shard_size")
    layout = Layout.plan([job.entry for job in jobs], size, {c.name: c.stem for c in donor.components.values()})
    sizes: Counter[torch.dtype] = Counter()
    for job in jobs:
        if is_float(job.entry.dtype):
            sizes[job.entry.dtype] += job.entry.numel
    dtype = sizes.most_common(1)[0][0] if sizes else torch.float32
    config = output_config(donor.config, dtype) if donor.config is not None else None
    return Plan(source, chain, tuple(jobs), layout, inputs, donor, config, dtype, tuple(notes), tuple(nested))


def _picked(
    source: Source, every: Mapping[str, Checkpoint], roles: Mapping[str, Role]
) -> tuple[dict[str, str], set[str]]:
    """Tensors that copy rules and drop rules pick; a rule that picks nothing is an error."""
    recipe, where = source.recipe, source.document.where
    copied: dict[str, str] = {}
    for index, rule in enumerate(recipe.copy_):
        if rule.from_ not in every:
            hint = suggest(rule.from_, every)
            raise RecipeError(
                f"{where(('copy', index))}copy takes tensors from {rule.from_!r}, which is no model here.{hint}"
            )
        picked = [name for name in every[rule.from_].tensors if selects(rule, name, roles[name])]
        if not picked:
            raise RecipeError(f"{where(('copy', index))}this copy rule picks no tensor of {rule.from_!r}.")
        copied |= dict.fromkeys(picked, rule.from_)
    dropped: set[str] = set()
    for index, selector in enumerate(recipe.drop):
        picked = [name for name, role in roles.items() if selects(selector, name, role)]
        if not picked:
            raise RecipeError(f"{where(('drop', index))}this drop rule picks no tensor.")
        dropped.update(picked)
    return copied, dropped


def _names(
    first: str,
    every: Mapping[str, Checkpoint],
    used: Mapping[str, Checkpoint],
    copied: Mapping[str, str],
    dropped: set[str],
    notes: list[str],
) -> list[str]:
    """Names of the output, in the donor's order; every tensor of every model is accounted for."""
    donor = every[first]
    tied = {name: source for name, source in donor.ties.items() if name in donor.tensors}
    for name, source in tied.items():
        notes.append(f"{name} is tied to {source} by the config of {first}: written once.")
    names = [name for name in donor.tensors if name not in dropped and name not in tied]
    names += [name for name in copied if name not in donor.tensors and name not in dropped]
    accounted = {*names, *dropped}
    extras: list[str] = []
    for key, checkpoint in used.items():
        for name in checkpoint.tensors:
            if name not in accounted and name not in checkpoint.ties and not (checkpoint is donor and name in tied):
                extras.append(f"{name} (only in {key}, {checkpoint.label})")
    if extras:
        raise IncompatibleModelsError(
            f"{len(extras)} tensors have no counterpart in {first} ({donor.label}):\n{shorten(extras)}\n"
            "Leave them out with `drop: [PATTERN]`, or take them from one model with "
            "`copy: [{match: PATTERN, from: NAME}]`."
        )
    if dropped:
        notes.append(f"{len(dropped)} tensors are left out, as `drop` asks.")
    return names


def _raise_problems(problems: list[str], every: Mapping[str, Checkpoint]) -> None:
    if not problems:
        return
    advice = (
        "Take such tensors from one model with `copy: [{match: PATTERN, from: NAME}]`, or leave them out with "
        "`drop: [PATTERN]`; if most are listed, the models are not of one architecture."
    )
    raise IncompatibleModelsError(f"{len(problems)} tensors cannot be aligned:\n{shorten(problems)}\n{advice}")


def _copy(tensor: LazyTensor, name: str, role: Role, wanted: torch.dtype | None, origin: str) -> Job:
    dtype = wanted if wanted is not None and is_float(tensor.dtype) else tensor.kept
    return Job(Entry(name, tensor.shape, dtype), role, (tensor,), origin=origin)


def _merge(
    chain: Chain,
    name: str,
    role: Role,
    tensors: Mapping[str, LazyTensor],
    experts: tuple[str, ...],
    wanted: torch.dtype | None,
    given: torch.dtype | None,
) -> Job:
    dtypes = [tensor.dtype for tensor in tensors.values()]
    kept = [tensor.kept for tensor in tensors.values()]
    entry = Entry(name, next(iter(tensors.values())).shape, wanted or promote(kept))
    methods = tuple(step.at(name, role, experts) for step in chain.steps)
    weights = chain.weights_at(name, role)
    sources = tuple(tensors[key] for key in experts)
    check_factors(methods, name, tensors)
    if all(method.copies for method in methods):
        # inside another recipe a copy stays as it is stored: nothing is gained by float32
        return _copy(sources[0], name, role, given or (None if wanted else entry.dtype), experts[0])
    for method in methods:
        try:
            method.check(weights)
        except RecipeError as error:
            raise RecipeError(f"{error} (tensor {name})") from None
    compute = torch.float64 if torch.float64 in dtypes else torch.float32
    return Job(entry, role, sources, tensors.get("base"), methods, weights, compute)


def _check_constant(chain: Chain, jobs: list[Job]) -> None:
    for index, step in enumerate(chain.steps):
        live = [(job.name, job.methods[index]) for job in jobs if len(job.methods) == len(chain.steps)]
        if not live or live[0][1].survey_scope != "model" or not live[0][1].rounds:
            continue
        for key in live[0][1].constant:
            values = {getattr(method, key) for _, method in live}
            if len(values) > 1:
                label = step.cls.parameters()[key].label
                raise RecipeError(
                    f"parameter {label!r} of {step.cls.name!r} takes {len(values)} values but must be one over the "
                    "whole model, because what is surveyed with it is the whole model. Use `scope: tensor`, where the "
                    "method has it, for values that differ."
                )
