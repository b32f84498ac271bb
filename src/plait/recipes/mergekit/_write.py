"""An imported recipe as YAML, with what is not the same above it."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from plait.recipes.mergekit._import import Imported

__all__ = ["recipe_yaml"]


class _Dumper(yaml.SafeDumper):
    """Writes short lists and rules on one line, and repeats what stands twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _flat(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) < 60
    return value is None or isinstance(value, bool | int | float)


def _sequence(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=all(_flat(item) for item in data))


def _mapping(dumper: yaml.SafeDumper, data: dict[str, Any]) -> yaml.Node:
    inner = [item for value in data.values() for item in (value if isinstance(value, list) else [value])]
    short = 0 < len(data) <= 4 and not {"method", "merge_method"} & set(data) and all(_flat(item) for item in inner)
    flow = short and sum(len(str(k)) + len(str(v)) for k, v in data.items()) < 80
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=flow)


_Dumper.add_representer(list, _sequence)
_Dumper.add_representer(dict, _mapping)


def recipe_yaml(imported: Imported, source: str = "") -> str:
    """Return the recipe as YAML; notes become comments."""
    lines = [f"# imported by plait from {source}"] if source else []
    for note in imported.notes:
        lines += textwrap.wrap(note, 110, initial_indent="# - ", subsequent_indent="#   ")
    body = yaml.dump(imported.recipe, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return "\n".join([*lines, body])
