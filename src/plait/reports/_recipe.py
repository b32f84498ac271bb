"""The recipe as the output carries it."""

from __future__ import annotations

from typing import Any

import yaml

from plait.engine import Plan

__all__ = ["MANIFEST", "RECIPE", "recipe_text"]

MANIFEST = "plait.json"
RECIPE = "plait.yaml"


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
