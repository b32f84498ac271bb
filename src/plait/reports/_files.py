"""The small files of an output."""

from __future__ import annotations

import json
from pathlib import PurePath

from plait.checkpoints import carried_files, is_tokenizer_file
from plait.engine import Plan, Result
from plait.errors import ReadError
from plait.reports._card import model_card
from plait.reports._manifest import manifest
from plait.reports._recipe import MANIFEST, RECIPE, recipe_text

__all__ = ["describe_output"]


def describe_output(plan: Plan, result: Result) -> dict[str, bytes]:
    """Return every small file of the output: config, tokenizer and its kin, recipe, provenance, card.

    Raises:
        ReadError: if a file beside the donor's weights cannot be read.
    """
    files: dict[str, bytes] = {}
    folder = plan.donor.folder if plan.recipe.output is None else None  # an adapter is loaded beside its base's files
    if folder is not None:
        try:
            for path in carried_files(folder):
                files[path.as_posix()] = (folder / path).read_bytes()
        except OSError as error:
            raise ReadError(
                f"{error.filename or folder}, which belongs to the merged model too, cannot be read: {error.strerror}. "
                "Put it back, then run the same command again."
            ) from None
    own = plan.files or plan.donor.files
    if own:  # a tokenizer of the result's own: nothing of the donor's stays beside it
        files = {path: data for path, data in files.items() if not is_tokenizer_file(PurePath(path))} | dict(own)
    if plan.config is not None:
        files["config.json"] = (json.dumps(plan.config, indent=2) + "\n").encode()
    if plan.recipe.adapters == "factors":
        files["adapter_config.json"] = (json.dumps(dict(plan.donor.adapter or {}), indent=2) + "\n").encode()
    files[RECIPE] = recipe_text(plan).encode()
    files[MANIFEST] = (json.dumps(manifest(plan, result), indent=1, ensure_ascii=False) + "\n").encode()
    files["README.md"] = model_card(plan).encode()
    return files
