"""Names that programming languages come with, as Pygments knows them."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from plait.bench._split import Row

__all__ = ["builtin_names"]

_NAME = re.compile(r"[\w.:$-]{4,40}")
_STEM = 5  # names of one family begin alike: array_map, array_merge


def builtin_names() -> Iterator[Row]:
    """Yield (first letters, name of a function or constant, the language or system that has it)."""
    spec = importlib.util.find_spec("pygments.lexers")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'pygments'", name="pygments")
    for path in sorted(Path(spec.origin).parent.glob("_*_builtins.py")):
        language = path.stem.removeprefix("_").removesuffix("_builtins")
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value):
                yield Row(node.value.lower()[:_STEM], node.value, language)
