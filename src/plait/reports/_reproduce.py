"""Rebuild a merged model from what it says about itself, and compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.engine import Options, Plan, Progress, compile_recipe, digest_of
from plait.errors import CheckpointError, MissingModelError, ReproductionError, shorten
from plait.reports._recipe import MANIFEST

__all__ = ["Reproduction", "reproduce"]


@dataclass(frozen=True)
class Reproduction:
    """Result of a comparison.

    Attributes:
        tensors: number of tensors compared.
        differing: tensors whose rebuilt bytes differ from those in the folder.
        changed_inputs: inputs that are no longer what they were.
        damaged: tensors of the folder that are no longer what its provenance says.
        versions: library → (then, now), where they differ.
    """

    tensors: int
    differing: tuple[str, ...]
    changed_inputs: tuple[str, ...]
    damaged: tuple[str, ...]
    versions: Mapping[str, tuple[str, str]]

    @property
    def identical(self) -> bool:
        """Whether everything is as it was."""
        return not (self.differing or self.changed_inputs or self.damaged)

    def check(self) -> None:
        """Raise ReproductionError unless everything is identical."""
        if self.identical:
            return
        parts = []
        if self.changed_inputs:
            parts.append(f"these inputs have changed since: {', '.join(self.changed_inputs)}.")
        if self.damaged:
            parts.append(
                f"{len(self.damaged)} tensors of the folder were changed after it was made:\n{shorten(self.damaged)}"
            )
        if self.differing:
            parts.append(
                f"{len(self.differing)} of {self.tensors} tensors come out differently:\n{shorten(self.differing)}"
            )
        if self.versions:
            listed = ", ".join(f"{k} {a} then, {b} now" for k, (a, b) in self.versions.items())
            parts.append(f"versions differ: {listed}.")
        raise ReproductionError("\n".join(parts))


def reproduce(
    folder: str | Path,
    *,
    models: Mapping[str, str] | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Rebuild the model in `folder` from its provenance beside it, compare every tensor, and remove the copy.

    Args:
        folder: a folder that plait has made.
        models: where inputs lie now, by their name in the recipe, if they have moved.
        options: how to run.
        progress: told about phases and bytes.

    Raises:
        MissingModelError: if the folder has no provenance or an input cannot be found.
    """
    import tempfile

    from plait._versions import versions
    from plait.adapters import merge_adapter
    from plait.checkpoints import Checkpoint
    from plait.engine import execute, model_hash

    home = Path(folder)
    path = home / MANIFEST
    if not path.is_file():
        raise MissingModelError(f"{home} has no {MANIFEST}: it was not made by plait, or the file was removed.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        written, stored, recipe = record["tensors"], record["inputs"], record["recipe"]
        places = {name: entry.get("path") or _pinned(entry) for name, entry in stored.items()}
        if not isinstance(recipe, dict) or not written:
            raise ValueError("no recipe or no tensors")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); it cannot be used to rebuild the model.") from None
    made = Checkpoint.open(home)
    foreign = tuple(n for n in made.tensors if n not in written)
    damaged = foreign + tuple(
        n for n, digest in written.items() if n not in made.tensors or digest_of(made.tensors[n]) != digest
    )
    unknown = [name for name in models or {} if name not in places]
    if unknown:
        raise MissingModelError(f"the recipe has no model {unknown[0]!r}; its models are {', '.join(places)}.")
    plan = compile_recipe(_relocate(recipe, stored, places | dict(models or {})))
    with tempfile.TemporaryDirectory(
        dir=home.resolve().parent, prefix=f".{home.resolve().name}.plait-reproduce-"
    ) as scratch:
        changes = plan.recipe.output is not None and plan.recipe.adapters == "changes"
        run = merge_adapter if changes else execute
        result = run(plan, Path(scratch) / "model", options, progress)
    changed = tuple(_changed(plan, stored, {n: model_hash(c, result.inputs[n]) for n, c in plan.inputs.items()}))
    differing = tuple(n for n, digest in written.items() if result.digests.get(n) != digest)
    now = versions()
    drift = {k: (v, now.get(k, "")) for k, v in record.get("versions", {}).items() if now.get(k) != v}
    return Reproduction(len(written), differing, changed, damaged, drift)


def _pinned(entry: Mapping[str, Any]) -> str:
    if entry.get("hub_id"):
        scheme = "hf://" if str(entry["reference"]).startswith("hf://") else ""
        return scheme + (f"{entry['hub_id']}@{entry['revision']}" if entry.get("revision") else str(entry["hub_id"]))
    return str(entry["reference"])


def _changed(plan: Plan, stored: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    return [name for name, entry in stored.items() if name not in plan.inputs or entry.get("hash") != now[name]]


def _relocate(recipe: Any, stored: Mapping[str, Any], places: Mapping[str, str]) -> Any:
    """Replace each reference in a recipe by where the model lies."""
    by_reference = {entry["reference"]: places[name] for name, entry in stored.items()}

    def walk(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {k: walk(v, "model" if key == "experts" and isinstance(v, str) else k) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(item, key) for item in value]
        return (
            by_reference.get(value, value) if isinstance(value, str) and key in ("model", "base", "adapter") else value
        )

    return walk(recipe, "")
