"""Provenance: the recipe, the resolved values, the versions and the content hash of every input and output."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from plait._versions import versions
from plait.checkpoints import Checkpoint, is_url
from plait.engine import Plan, Result, model_hash
from plait.methods import Method, external

__all__ = ["manifest"]


def manifest(plan: Plan, result: Result) -> dict[str, Any]:
    """Return the provenance as plain data. It holds no date and no path of the output: equal merges are equal."""
    inputs: dict[str, Any] = {}
    for name, checkpoint in plan.inputs.items():
        digests = result.inputs.get(name, {})
        entry: dict[str, Any] = {"reference": checkpoint.label}
        if checkpoint.hub_id is not None:
            entry |= {"hub_id": checkpoint.hub_id, "revision": checkpoint.revision}
        elif (source := next(iter(checkpoint.tensors.values())).source) != "memory":
            entry["path"] = str(checkpoint.folder or source) if is_url(source) else _here(checkpoint, source)
        entry |= {"tensors": len(digests), "hash": model_hash(checkpoint, digests)}
        inputs[name] = entry
    return {
        "schema": 1,
        "versions": versions(),
        "recipe": plan.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "seed": plan.recipe.seed,
        "hash": "xxh3_128",
        "inputs": inputs,
        "resolved": _resolved(plan),
        "notes": list(plan.notes),
        # an adapter's tensors are factors, not the planned changes
        "tensors": dict(result.digests) if plan.recipe.output else {j.name: result.digests[j.name] for j in plan.jobs},
    }


def _here(checkpoint: Checkpoint, source: str) -> str:
    return str((checkpoint.folder or Path(source)).resolve())


def _method(method: Method) -> dict[str, Any]:
    values = {external(f.name): getattr(method, f.name) for f in dataclasses.fields(method)}
    return {"method": method.name, **values}


def _resolved(plan: Plan) -> list[dict[str, Any]]:
    """Group the tensors by the values they were merged with."""
    groups: dict[str, dict[str, Any]] = {}
    seen: dict[Any, list[str]] = {}  # by what is one object for all tensors that are merged alike
    for job in plan.jobs:
        key = (tuple(map(id, job.methods)), job.weights, job.origin, job.entry.dtype)
        if key in seen:
            seen[key].append(job.name)
            continue
        if job.copies:
            facts: dict[str, Any] = {"copied_from": job.origin}
        else:
            weights = dict(zip(plan.chain.experts, job.weights, strict=False)) if not job.origin else {}
            facts = {"steps": [_method(m) for m in job.methods], "weights": weights}
        facts["dtype"] = str(job.entry.dtype).removeprefix("torch.")
        seen[key] = groups.setdefault(json.dumps(facts), {**facts, "names": []})["names"]
        seen[key].append(job.name)
    found = list(groups.values())
    if len(found) == 1:
        found[0]["names"] = "all"
    return found
