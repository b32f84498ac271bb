"""A recipe whose result is an adapter: only what the experts change is planned, and the base only where it must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from plait.checkpoints import Checkpoint, DifferenceTensor, Entry, Layout, LazyTensor, Shard, ZeroTensor
from plait.engine._experts import by_factors, low_rank_of, untouched
from plait.engine._plan import Job, Plan
from plait.errors import RecipeError, shorten
from plait.methods import Combiner, Group
from plait.recipes import Chain, Source
from plait.tensors.randomness import Draws
from plait.tensors.streams import Stream

__all__ = ["Changes", "FactoredJob", "as_adapter", "as_files", "factored_group", "only_changes"]


@dataclass(frozen=True, eq=False)
class FactoredJob(Job):
    """A change that is merged by its factors; no matrix of its size is made."""

    def memory(self, preferred: int) -> int:
        """Factors of all experts, stacked and orthogonalised in float64, and what is read of them."""
        del preferred
        rows, rank = self.entry.shape[0], sum(getattr(tensor, "rank", 0) for tensor in self.experts)
        columns = self.entry.numel // max(rows, 1)
        return 8 * 8 * (rows + columns) * rank + 8 * 8 * rank * rank + (1 << 20)


@dataclass(frozen=True, eq=False)
class TruncatedJob(Job):
    """A change that is merged as a dense matrix and then cut to its largest singular triplets."""

    def memory(self, preferred: int) -> int:
        """What merging takes, the matrix twice, and the Gram matrix of its shorter side with its eigenvectors."""
        rows = max(self.entry.shape[0], 1)
        shorter = min(rows, self.entry.numel // rows)
        return super().memory(preferred) + 8 * self.entry.numel + 4 * 8 * shorter * shorter


@dataclass(frozen=True)
class Changes:
    """What is left of the models of a recipe.

    Attributes:
        models: experts, with the tensors that one of them changes.
        base: the same of the base, where the methods read it.
        origin: weights to subtract from results that are weights.
        donor: whose name the adapter's configuration gives as its base.
    """

    models: Mapping[str, Checkpoint]
    base: Checkpoint | None
    origin: Mapping[str, LazyTensor]
    donor: Checkpoint


def only_changes(source: Source, chain: Chain, models: Mapping[str, Checkpoint], base: Checkpoint | None) -> Changes:
    """Keep the tensors that an expert changes.

    Raises:
        RecipeError: for what cannot be written as a low-rank change, and for methods or experts that need a base that
            the recipe does not name.
    """
    where = source.document.where(("output",))
    fixed = [step.cls.name for step in chain.steps if not step.cls.translates]
    touched: dict[str, LazyTensor] = {}
    for checkpoint in models.values():
        for name, tensor in checkpoint.tensors.items():
            if not untouched(tensor) and not (base is not None and tensor is base.tensors.get(name)):
                touched.setdefault(name, tensor)
    full = {n for c in models.values() for n in touched if n in c.tensors and c.tensors[n].space == "weight"}
    if base is None and (fixed or full):
        what = f"{fixed[0]!r} works on weights" if fixed else f"{min(full)} is known as a weight, not as a change"
        raise RecipeError(f"{where}{what}: an adapter as output then needs `base:`.")
    vectors = [name for name, tensor in touched.items() if len(tensor.shape) < 2 or not tensor.dtype.is_floating_point]
    dropped = [s.match for s in source.recipe.drop]
    if vectors and not _all_dropped(source, vectors):
        raise RecipeError(
            f"{where}{len(vectors)} tensors that the experts change are no matrices, and have no low-rank form:\n"
            f"{shorten(vectors)}\nLeave them as they are in the base with `drop: [PATTERN]`"
            f"{' (beside those that are dropped)' if dropped else ''}, or write a model."
        )
    found = {
        key: Checkpoint(checkpoint.label, {n: _change(checkpoint, n, t, base, bool(fixed)) for n, t in touched.items()})
        for key, checkpoint in models.items()
    }
    donor = base or next(iter(models.values()))
    if not fixed:
        return Changes(found, None, {}, donor)
    assert base is not None
    origin = {name: base.tensors[name] for name in touched if name in base.tensors}
    kept = Checkpoint(base.label, origin) if chain.needs_base else None
    return Changes(found, kept, origin, donor)


def as_adapter(plan: Plan) -> Plan:
    """Mark the jobs that are merged by factors, and those that are not.

    Raises:
        RecipeError: where a result has no rank of its own and the recipe names none.
    """
    output = plan.recipe.output
    jobs = tuple(_factored(job) for job in plan.jobs)
    dense = [job for job in jobs if not isinstance(job, FactoredJob)]
    if dense and output.rank is None and output.energy is None:
        names = " → ".join(step.cls.name for step in plan.chain.steps)
        raise RecipeError(
            f"{plan.source.document.where(('output',))}what {names} makes of {dense[0].name} has the full rank of its "
            f"matrix: say `output: {{kind: adapter, rank: …}}` or `energy: …`."
        )
    # an upper bound of what will be written: ranks are known when the changes are
    entries = [entry for job in jobs for entry in _factors(job, output.rank)]
    return replace(plan, jobs=jobs, layout=Layout((Shard("adapter_model.safetensors", tuple(entries)),)))


def _factors(job: Job, rank: int | None) -> tuple[Entry, Entry]:
    rows = job.entry.shape[0]
    columns = job.entry.numel // max(rows, 1)
    own = sum(getattr(tensor, "rank", 0) for tensor in job.experts) if isinstance(job, FactoredJob) else columns
    most = max(1, min(rows, columns, own, rank or columns))
    return Entry(f"{job.name}.B", (rows, most), torch.float32), Entry(f"{job.name}.A", (most, columns), torch.float32)


def as_files(plan: Plan) -> Plan:
    """A merge of adapters' own tensors: one file under the name that adapters have.

    Raises:
        RecipeError: if the adapters are scaled differently, so that equal numbers in them mean different changes.
    """
    first, *others = plan.inputs.values()
    for other in others:
        for key in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "fan_in_fan_out"):
            ours, theirs = ((c.adapter or {}).get(key) or None for c in (first, other))
            if ours != theirs:
                raise RecipeError(
                    f"{plan.source.document.where(('adapters',))}adapters: factors needs adapters of one run, but "
                    f"{key} is {ours} in {first.label} and {theirs} in {other.label}. Use `adapters: changes`."
                )
    return replace(plan, layout=Layout((Shard("adapter_model.safetensors", plan.layout.entries),)), config=None)


def _factored(job: Job) -> Job:
    known = job.deltas and all(by_factors(tensor) for tensor in job.experts)
    (only, *others) = job.methods or (None,)
    whole = not known or others or not isinstance(only, Combiner) or not only.factored(job.subject)
    kind = TruncatedJob if whole else FactoredJob
    return kind(**{field.name: getattr(job, field.name) for field in fields(Job)})


def factored_group(plan: Plan, job: Job, facts: Sequence[Any], device: torch.device) -> Group:
    """What a method sees of changes that are merged by their factors."""
    low_rank = low_rank_of(job, device)
    assert low_rank is not None
    shape = job.entry.shape
    return Group(
        job.subject,
        None,
        Stream(len(low_rank), lambda i: low_rank[i].dense().reshape(shape)),
        plan.chain.experts,
        job.weights,
        tuple(facts),
        draws=Draws(plan.recipe.seed, job.name),
        given_deltas=True,
        low_rank=low_rank,
        exact=True,
    )


def _all_dropped(source: Source, names: list[str]) -> bool:
    from plait.architectures import roles_of
    from plait.recipes import selects

    roles = roles_of(names)
    return all(any(selects(rule, name, roles[name]) for rule in source.recipe.drop) for name in names)


def _change(checkpoint: Checkpoint, name: str, like: LazyTensor, base: Checkpoint | None, weights: bool) -> LazyTensor:
    """One expert's change of one tensor; its weight, where the methods need weights."""
    found = checkpoint.tensors.get(name)
    origin = base.tensors.get(name) if base is not None else None
    if found is None:
        return origin if weights and origin is not None else ZeroTensor(name, like.shape, checkpoint.label, like.kept)
    if weights or found.space == "delta" or origin is None or origin.shape != found.shape:
        return found
    return ZeroTensor(name, found.shape, checkpoint.label) if found is origin else DifferenceTensor(found, origin)
