"""Run a plan whose result is an adapter: by factors where the method allows, else dense matrix by dense matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from plait.adapters._extract import Kept, kind_of
from plait.adapters._write import Kind, Piece, write_adapter
from plait.checkpoints import LowRankTensor, is_url, local_path, parse_dtype
from plait.engine import (
    FactoredJob,
    Job,
    Options,
    Plan,
    Progress,
    Result,
    Run,
    Silent,
    ThreadWorkers,
    bundles,
    each,
    factored_group,
    pool,
)
from plait.errors import NonFiniteError, OutputError, RecipeError
from plait.tensors.factors import factor
from plait.tensors.lowrank import choose_rank, from_svd
from plait.tensors.spectral import SVD

__all__ = ["AdapterResult", "for_target", "merge_adapter"]


@dataclass(frozen=True)
class AdapterResult(Result):
    """What a run did, and what it kept of each module's change."""

    kept: Mapping[str, Kept] = field(default_factory=dict)


def merge_adapter(
    plan: Plan,
    out: Path | str,
    options: Options | None = None,
    progress: Progress | None = None,
    describe: Callable[[Plan, Result], Mapping[str, bytes]] | None = None,
) -> AdapterResult:
    """Merge changes and write them as an adapter for PEFT.

    A change that is known by its factors is merged, cut to the rank or energy that the recipe asks for and written
    without any matrix of the weight's size; the base is read only by methods that work on weights.

    Raises:
        PlaitError: as `plait.engine.execute`.
    """
    options, progress = options or Options(), progress or Silent()
    _check_free(out, options)
    run = Run(plan, options, progress)
    pieces: dict[str, Piece] = {}
    kept: dict[str, Kept] = {}

    def work(bundle: Any) -> None:
        for job in bundle.jobs:
            piece, record = _merged(run, job)
            pieces[job.name], kept[piece.module] = piece, record
            progress.advance(sum(source.nbytes for source in job.sources))

    with pool(options.threads) as threads:
        run.survey(ThreadWorkers(run, threads))
        progress.phase("merging", sum(source.nbytes for job in plan.jobs for source in job.sources))
        for _ in each(threads, bundles(plan.jobs, run.block), work, options, run.stop):
            pass
    ordered = [pieces[job.name] for job in plan.jobs]
    kept = {piece.module: kept[piece.module] for piece in ordered}
    inputs = run.input_digests()
    asked = plan.recipe.output
    digests = write_adapter(
        ordered,
        out,
        base=_base_name(plan),
        like=_parent(plan),
        dtype=parse_dtype(plan.recipe.dtype) if plan.recipe.dtype else torch.float32,
        target=asked.for_,
        overwrite=options.overwrite,
        describe=(lambda found: describe(plan, Result(found, inputs))) if describe is not None else None,
        fingerprint=plan.fingerprint(options.device),
    )
    return AdapterResult(digests, inputs, kept=kept)


def for_target(plan: Plan, target: str | None) -> Plan:
    """Return the plan with another target of its adapter.

    Raises:
        RecipeError: for a target that is not known, or a recipe whose result is a model.
    """
    if target is None:
        return plan
    if target != "vllm":
        raise RecipeError(f"--for {target}: plait knows the limits of vllm.")
    if plan.recipe.output is None:
        raise RecipeError(
            "--for vllm is for adapters: add `output: adapter` to the recipe; vLLM loads models as they are."
        )
    output = plan.recipe.output.model_copy(update={"for_": target})
    recipe = plan.recipe.model_copy(update={"output": output})
    return replace(plan, source=replace(plan.source, recipe=recipe))


def _check_free(out: Path | str, options: Options) -> None:
    """Refuse an output that stands there before anything is computed."""
    if not options.overwrite and not is_url(out) and local_path(str(out)).exists():
        raise OutputError(f"the output {out} exists already; choose another, or pass --overwrite (overwrite=True).")


def _merged(run: Run, job: Job) -> tuple[Piece, Kept]:
    plan, asked = run.plan, run.plan.recipe.output
    if isinstance(job, FactoredJob):
        (method,) = job.methods
        evaluator = run.main
        facts = evaluator.facts_before(job, len(job.methods)).get(0, ())
        merged = method.merge_low_rank(factored_group(plan, job, facts, evaluator.device))  # type: ignore[attr-defined]
        parts, floor = merged.svd(), 0.0
    else:
        values = run.main.whole(job).float()
        if job.name in plan.origin:
            values -= plan.origin[job.name].read().float()
        matrix = values.view(job.entry.shape[0], -1)
        factors = factor(matrix)
        parts = SVD(*(part.double() for part in factors.top(factors.rank)))
        total = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
        floor = max(0.0, total - float(parts.s.square().sum()))
    if not bool(torch.isfinite(parts.s).all()):
        raise NonFiniteError(f"what the merge makes of {job.name!r} is not finite; a factor of an adapter is damaged.")
    rank = choose_rank(parts.s, asked.rank, asked.energy)
    squares = parts.s.double().square()
    whole = float(squares.sum()) + floor
    error = math.sqrt(max(0.0, float(squares[rank:].sum()) + floor) / whole) if whole > 0 else 0.0
    module, kind = _place(job, plan)
    return Piece(module, from_svd(parts.top(rank)), kind, job.entry.shape), Kept(rank, error)


def _place(job: Job, plan: Plan) -> tuple[str, Kind]:
    """The module as an adapter calls it, and how PEFT keeps its factors."""
    for tensor in job.experts:
        if isinstance(tensor, LowRankTensor) and tensor.module:
            return tensor.module, tensor.kind
    kind = kind_of(job.name, len(job.entry.shape), job.role.kind, plan.donor.config)
    return job.name.removesuffix(".weight"), kind


def _base_name(plan: Plan) -> str | None:
    base = plan.inputs.get("base")
    return (base.hub_id or base.label) if base is not None else None


def _parent(plan: Plan) -> Mapping[str, Any] | None:
    """The configuration of the first adapter among the inputs."""
    return next((c.adapter for c in plan.inputs.values() if c.adapter), None)
