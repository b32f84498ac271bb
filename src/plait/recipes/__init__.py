"""What a user asks for: recipes, their schema and their per-tensor values."""

from plait.recipes._json_schema import json_schema
from plait.recipes._load import Source, load_recipe
from plait.recipes._resolve import Chain, Step, resolve_chain
from plait.recipes._schema import AdapterOutput, CopyRule, Expert, Recipe, Selector, Slice
from plait.recipes._sizes import parse_size
from plait.recipes._values import selects
from plait.recipes._yaml import Document, read_yaml

__all__ = [
    "AdapterOutput",
    "Chain",
    "CopyRule",
    "Document",
    "Expert",
    "Recipe",
    "Selector",
    "Slice",
    "Source",
    "Step",
    "json_schema",
    "load_recipe",
    "parse_size",
    "read_yaml",
    "resolve_chain",
    "selects",
]
