"""Merging methods: one paper, one file. See `plait.methods._contract` for what a method is."""

from plait.methods._contract import Combiner, Group, Method, Modifier, Paper, Sparsifier, Subject
from plait.methods._parameters import (
    Bounds,
    Density,
    Doc,
    Fixed,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Parameter,
    PerExpert,
    PositiveInt,
    Real,
    check_value,
    external,
    internal,
)
from plait.methods._registry import compositions, find, find_composition, find_presets, methods

__all__ = [
    "Bounds",
    "Combiner",
    "Density",
    "Doc",
    "Fixed",
    "Fraction",
    "Group",
    "Method",
    "Modifier",
    "NonNegative",
    "NonNegativeInt",
    "Paper",
    "Parameter",
    "PerExpert",
    "PositiveInt",
    "Real",
    "Sparsifier",
    "Subject",
    "check_value",
    "compositions",
    "external",
    "find",
    "find_composition",
    "find_presets",
    "internal",
    "methods",
]
