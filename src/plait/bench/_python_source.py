"""Expressions from the standard library's own source, labelled by what Python's grammar says they are."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from plait.bench._split import Row
from plait.errors import PlaitError

__all__ = ["expressions"]

# Parts that every distribution of Python installs; tests, IDLE, Tk and the modules that later versions removed are not.
_PACKAGES = (
    "asyncio",
    "collections",
    "concurrent",
    "ctypes",
    "dbm",
    "email",
    "html",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "re",
    "sqlite3",
    "tomllib",
    "unittest",
    "urllib",
    "wsgiref",
    "xml",
    "xmlrpc",
    "zoneinfo",
)
_KINDS: dict[type[ast.expr], str] = {
    ast.Attribute: "attribute",
    ast.BinOp: "arithmetic",
    ast.BoolOp: "and / or",
    ast.Call: "call",
    ast.Compare: "comparison",
    ast.IfExp: "conditional",
    ast.Lambda: "lambda",
    ast.List: "list",
    ast.ListComp: "comprehension",
    ast.Subscript: "subscript",
    ast.Tuple: "tuple",
    ast.UnaryOp: "unary",
}
_SHORTEST, _LONGEST = 12, 60  # characters: long enough to hold something, short enough for some 16 tokens


def expressions() -> Iterator[Row]:
    """Yield (file, expression, kind of its outermost node), in the order of the files and of their syntax trees.

    The kind cannot be read from which characters occur: a call holds comparisons, a comparison holds calls. It takes
    the order of the tokens, which the mean of a frozen encoder's outputs hardly keeps: hence a task to fine-tune for.
    """
    found = False
    for path, tree in _trees():
        for node in ast.walk(tree):
            kind = _KINDS.get(type(node)) if isinstance(node, ast.expr) else None
            if kind is None or not isinstance(getattr(node, "ctx", None), ast.Load | None):
                continue  # targets of assignments and of del are not expressions
            text = ast.unparse(node)
            if _SHORTEST <= len(text) <= _LONGEST:
                found = True
                yield Row(path, text, kind)
    if not found:
        raise PlaitError(
            f"no source of the standard library under {_root()}; the testbed needs a Python installed with its .py files."
        )


def _trees() -> Iterator[tuple[str, ast.Module]]:
    root = _root()
    paths = [path for path in root.glob("*.py") if not path.name.startswith(("_sysconfigdata", "sitecustomize"))]
    for package in _PACKAGES:
        paths += (root / package).rglob("*.py")
    for path in sorted(paths):
        name = path.relative_to(root).as_posix()
        if "/test/" in name or "/tests/" in name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own strings are not ours to report
            yield name, ast.parse(path.read_bytes())


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])
