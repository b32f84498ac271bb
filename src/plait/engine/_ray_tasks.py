"""What a Ray worker does: survey a bundle of tensors, or make one shard. Doing it twice does no harm."""

from __future__ import annotations

import operator
import platform
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from plait._versions import versions
from plait.engine._compile import compile_recipe
from plait.engine._executors import ThreadWorkers
from plait.engine._options import Options, Silent
from plait.engine._plan import Job, Plan
from plait.engine._run import Run
from plait.engine._scheduler import Bundle, bundles, each, pool
from plait.engine._shard_file import ShardFile, Sink
from plait.errors import ClusterError, PlaitError
from plait.recipes import Recipe, Source

__all__ = ["Facts", "Spec", "make_shard", "stamps_of", "survey_bundle"]

#: for each evaluator of a run: step → totals of its finished rounds
Facts = Sequence[Mapping[int, Sequence[Any]]]


@dataclass(frozen=True)
class Spec:
    """A run as it travels: a worker compiles the plan anew, and must arrive at the same one.

    Attributes:
        recipe: what to do.
        folder: where relative paths start.
        options: how to do it.
        fingerprint: of the driver's plan.
        versions: of the driver's libraries.
        stamps: of the driver's inputs, by name.
    """

    recipe: Recipe
    folder: Path
    options: Options
    fingerprint: str
    versions: Mapping[str, str]
    stamps: Mapping[str, str]


def stamps_of(plan: Plan) -> dict[str, str]:
    """What tells which version of each input a process sees."""
    return {name: f"{checkpoint.label} {checkpoint.stamp}" for name, checkpoint in plan.inputs.items()}


_runs: OrderedDict[tuple[str, Options], Run] = OrderedDict()


def _run_of(spec: Spec) -> Run:
    """Compile the plan, once in a process."""
    key = (spec.fingerprint, spec.options)
    if key not in _runs:
        plan = compile_recipe(Source(spec.recipe, folder=spec.folder))
        if plan.fingerprint(spec.options.device) != spec.fingerprint:
            raise _differs(spec, plan)
        _runs[key] = Run(plan, spec.options, Silent())
        while len(_runs) > 2:
            _runs.popitem(last=False)
    _runs[key].stop.clear()  # an error of an earlier task may have set it
    return _runs[key]


def _differs(spec: Spec, plan: Plan) -> ClusterError:
    node, now = platform.node(), versions()
    other = [f"{name} {now.get(name)} instead of {v}" for name, v in spec.versions.items() if now.get(name) != v]
    if other:
        return ClusterError(f"the worker on {node} has {', '.join(other)}: the result would depend on who computes it.")
    seen = stamps_of(plan)
    changed = [name for name, stamp in spec.stamps.items() if seen.get(name) != stamp]
    return ClusterError(
        f"the worker on {node} sees other files than the driver ({', '.join(changed) or 'the plan differs'}): inputs "
        "must lie on a file system that all nodes share, or behind URLs."
    )


def _ready(spec: Spec, facts: Facts) -> Run:
    run = _run_of(spec)
    for evaluator, known in zip(run.evaluators, facts, strict=True):
        evaluator.facts = {step: list(totals) for step, totals in known.items()}
    return run


def survey_bundle(spec: Spec, facts: Facts, index: int, step: int, names: Sequence[str]) -> Any:
    """Return the partial total of some tensors, or the error that a user should see."""
    try:
        run = _ready(spec, facts)
        wanted = set(names)
        jobs = [job for job in run.evaluators[index].plan.jobs if job.name in wanted]
        with pool(run.options.threads) as threads:
            parts = [p for p in ThreadWorkers(run, threads).survey(index, step, jobs) if p is not None]
        return reduce(operator.add, parts) if parts else None
    except PlaitError as error:
        return error


def _made(run: Run, job: Job, file: ShardFile) -> tuple[str, str, list[str]]:
    digest = run.merge(job, lambda start, values: file.write(job.name, start, values))
    return job.name, digest, [run.hashes.get(leaf) for leaf in run.leaves(job)]


def make_shard(spec: Spec, facts: Facts, sink: Sink, name: str, names: Sequence[str]) -> Any:
    """Make one shard and deliver it.

    Args:
        spec: the run.
        facts: totals of all surveys.
        sink: where the shard goes.
        name: the shard's name.
        names: the tensors to compute; the others of the shard are finished already.

    Returns:
        [(tensor, digest, hashes of its inputs)] and what the journal keeps, or the error that a user should see.
    """
    try:
        run = _ready(spec, facts)
        shard = next(s for s in run.plan.layout.shards if s.name == name)
        wanted = set(names)
        jobs = [job for job in run.plan.jobs if job.name in wanted]
        file = sink.begin(shard, resume=len(jobs) < len(shard.entries))
        try:
            done: list[tuple[str, str, list[str]]] = []
            with pool(run.options.threads) as threads:

                def work(bundle: Bundle) -> list[tuple[str, str, list[str]]]:
                    return [_made(run, job, file) for job in bundle.jobs]

                for part in each(threads, bundles(jobs, run.block), work, run.options, run.stop):
                    done += part
            return done, sink.deliver(file)
        finally:
            file.discard()
    except PlaitError as error:
        return error
