"""Tensors of several models under one name: the jobs of a plan, and every error that headers can show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from plait.architectures import Role, roles_of
from plait.checkpoints import Checkpoint, Entry, Layout, LazyTensor, is_float, output_config, parse_dtype, promote
from plait.engine._experts import check_factors, untouched
from plait.engine._plan import Job, Plan
from plait.engine._unify import unify
from plait.errors import IncompatibleModelsError, RecipeError, shorten, suggest
from plait.recipes import Chain, Source, parse_size, selects

__all__ = ["align"]


def align(
    source: Source,
    chain: Chain,
    models: Mapping[str, Checkpoint],
    base: Checkpoint | None,
    inputs: dict[str, Checkpoint],
    nested: list[Plan],
    inner: bool,
    whole_model: Checkpoint | None = None,
) -> Plan:
    """Give every tensor of the output its inputs, and find every error that headers can show.

    Args:
        source: the recipe.
        chain: its methods.
        models: the experts.
        base: the base model, if there is one.
        inputs: what was opened.
        nested: plans of nested recipes among the models.
        inner: whether this is the plan of a nested recipe.
        whole_model: a model that knows the names of more tensors than those that are merged.

    Raises:
        IncompatibleModelsError: tensors without counterparts, or of other shapes or kinds.
        RecipeError: rules that pick nothing, or values that a method cannot take.
    """
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
        problem = _problem(name, role, found, used)
        if problem:
            problems.append(problem)
            continue
        tensors = {key: tensor for key, tensor in found.items() if tensor is not None}
        if not any(is_float(tensor.dtype) for tensor in tensors.values()):
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


def _problem(
    name: str, role: Role, found: Mapping[str, LazyTensor | None], used: Mapping[str, Checkpoint]
) -> str | None:
    """Why the tensors of one name cannot be merged; None if they can."""
    missing = [f"{key} ({used[key].label})" for key, tensor in found.items() if tensor is None]
    if missing:
        return f"{name}: missing from {', '.join(missing)}"
    tensors = {key: tensor for key, tensor in found.items() if tensor is not None}
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        listed = ", ".join(f"{list(tensor.shape)} in {key} ({tensor.source})" for key, tensor in tensors.items())
        vocabulary = role.kind in ("embedding", "head")
        advice = "; the vocabularies differ, which `tokenizer: union` or `base` aligns" if vocabulary else ""
        return f"{name}: shapes differ: {listed}{advice}"
    if len({is_float(tensor.dtype) for tensor in tensors.values()}) > 1:
        listed = ", ".join(f"{tensor.dtype} in {key}" for key, tensor in tensors.items())
        return f"{name}: numbers in one model, integers in another: {listed}"
    return None


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
