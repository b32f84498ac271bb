"""The JSON schema of recipes: pydantic's, with every method's parameters from its signature."""

from __future__ import annotations

import math
from typing import Any

from plait.methods import Parameter, compositions, find, find_composition, methods
from plait.recipes._schema import Recipe, ValueRule

__all__ = ["json_schema"]


def json_schema() -> dict[str, Any]:
    """Return the schema as plain data."""
    schema = Recipe.model_json_schema(by_alias=True)
    definitions = schema.setdefault("$defs", {})
    definitions["ValueRule"] = ValueRule.model_json_schema(by_alias=True)
    root = definitions["Recipe"] if "Recipe" in definitions else schema
    names = sorted([*methods(), *compositions()])
    definitions["Method"] = {
        "enum": names,
        "description": "; ".join(f"{name}: {methods()[name].summary}" for name in names if name in methods()),
    }
    root["properties"]["method"] = {
        "anyOf": [
            {"$ref": "#/$defs/Method"},
            {
                "type": "array",
                "items": {"anyOf": [{"$ref": "#/$defs/Method"}, {"type": "object", "propertyNames": {"enum": names}}]},
            },
        ]
    }
    reference = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Expert"}, {"$ref": "#/$defs/Recipe"}]}
    root["properties"]["experts"] = {
        "description": "the models to merge, by name",
        "anyOf": [{"type": "object", "additionalProperties": reference}, {"type": "array", "items": reference}],
    }
    root["properties"]["drop"]["items"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Selector"}]}
    root["properties"]["tokenizer"] = {
        "description": "whose vocabulary the result has: `union`, `base`, a model's name, or more of it",
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/Vocabulary"}, {"type": "null"}],
    }
    root["allOf"] = [_parameters(name) for name in names]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "plait recipe", **schema}


def _parameters(name: str) -> dict[str, Any]:
    steps = [find(part) for part in find_composition(name)]
    found: dict[str, Any] = {"weight": {"description": "weight of the experts"}}
    for cls in steps:
        for parameter in cls.parameters().values():
            found[parameter.label] = _value(parameter)
            found[f"{cls.name}.{parameter.label}"] = _value(parameter)
    rule = {"properties": {"method": {"const": name}}, "required": ["method"]}
    inside = {"type": "object", "properties": found, "additionalProperties": False}
    return {"if": rule, "then": {"properties": {"parameters": inside}}}


def _value(parameter: Parameter) -> dict[str, Any]:
    described = {"description": parameter.doc, "default": parameter.default}
    if parameter.kind == "choice":
        return {"enum": list(parameter.choices), **described}
    if parameter.kind in ("bool", "str"):
        return {"type": {"bool": "boolean", "str": "string"}[parameter.kind], **described}
    if parameter.kind == "any":
        return described
    number: dict[str, Any] = {"type": "integer" if parameter.kind == "int" else "number"}
    limits = (("minimum", "ge"), ("maximum", "le"), ("exclusiveMinimum", "gt"), ("exclusiveMaximum", "lt"))
    number |= {word: v for word, key in limits if math.isfinite(v := getattr(parameter.bounds, key))}
    options: list[dict[str, Any]] = [number]
    if not parameter.fixed:
        options += [{"type": "array", "items": number}, {"type": "array", "items": {"$ref": "#/$defs/ValueRule"}}]
    if parameter.per_expert:
        options.append({"type": "object"})
    return {"anyOf": options, **described} if len(options) > 1 else {**number, **described}
