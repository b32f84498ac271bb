"""Provenance: the recipe, the resolved values, the versions and the content hash of every input and output."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from plait._versions import versions
from plait.checkpoints import carried_files
from plait.engine import Plan, Result, model_hash
from plait.methods import Method, external

__all__ = ["MANIFEST", "RECIPE", "describe_output", "manifest"]

MANIFEST = "plait.json"
RECIPE = "plait.yaml"


def describe_output(plan: Plan, result: Result) -> dict[str, bytes]:
    """Return every small file of the output: config, tokenizer and its kin, recipe, provenance, card."""
    from plait.reports._card import model_card

    files: dict[str, bytes] = {}
    folder = plan.donor.folder
    if folder is not None:
        for path in carried_files(folder):
            files[path.as_posix()] = (folder / path).read_bytes()
    if plan.config is not None:
        files["config.json"] = (json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n").encode()
    files[RECIPE] = recipe_text(plan).encode()
    files[MANIFEST] = (json.dumps(manifest(plan, result), indent=1, ensure_ascii=False) + "\n").encode()
    files["README.md"] = model_card(plan).encode()
    return files


def recipe_text(plan: Plan) -> str:
    """The recipe as YAML, every key that is not at its default, in the schema's order."""
    content = plan.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    """Write an expert that is nothing but a path as that path."""
    if isinstance(value, dict):
        if set(value) == {"model"} and isinstance(value["model"], str):
            return value["model"]
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def manifest(plan: Plan, result: Result) -> dict[str, Any]:
    """Return the provenance as plain data. It holds no date and no path of the output: equal merges are equal."""
    inputs: dict[str, Any] = {}
    for name, checkpoint in plan.inputs.items():
        digests = result.inputs.get(name, {})
        entry: dict[str, Any] = {"reference": checkpoint.label}
        if checkpoint.hub_id is not None:
            entry |= {"hub_id": checkpoint.hub_id, "revision": checkpoint.revision}
        elif (source := next(iter(checkpoint.tensors.values())).source) != "memory":
            entry["path"] = str((checkpoint.folder or Path(source)).resolve())
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
        "tensors": {job.name: result.digests[job.name] for job in plan.jobs},
    }


def _method(method: Method) -> dict[str, Any]:
    values = {external(f.name): getattr(method, f.name) for f in dataclasses.fields(method)}
    return {"method": method.name, **values}


def _resolved(plan: Plan) -> list[dict[str, Any]]:
    """Group the tensors by the values they were merged with."""
    groups: dict[str, dict[str, Any]] = {}
    for job in plan.jobs:
        if job.copies:
            facts: dict[str, Any] = {"copied_from": job.origin}
        else:
            weights = dict(zip(plan.chain.experts, job.weights, strict=False)) if not job.origin else {}
            facts = {"steps": [_method(m) for m in job.methods], "weights": weights}
        facts["dtype"] = str(job.entry.dtype).removeprefix("torch.")
        groups.setdefault(json.dumps(facts), {**facts, "names": []})["names"].append(job.name)
    found = list(groups.values())
    if len(found) == 1:
        found[0]["names"] = "all"
    return found
