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

# Parts that every distribution of Python installs; tests, IDLE, Tk and modules that later versions removed are not.
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
_KINDS: dict[type[ast.AST], str] = {
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
    """Yield (file, expression on one line, kind of its outermost node), in the order of files and syntax trees.

    The kind cannot be read from which characters occur: a call holds comparisons, a comparison holds calls. It takes
    the order of the tokens, which the mean of a frozen encoder's outputs hardly keeps: hence a task to fine-tune for.

    Raises:
        PlaitError: Python was installed without the source of its library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = _files(root)
    if not files:
        raise PlaitError(f"no source of the standard library under {root}; the demo needs a Python with its .py files.")
    for path in files:
        source = path.read_bytes()
        lines = source.splitlines()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own strings are not ours to report
            tree = ast.parse(source)
        for node in _nodes(tree):
            kind = _KINDS.get(type(node))
            if kind is None or not isinstance(node, ast.expr) or node.lineno != node.end_lineno:
                continue
            if not isinstance(getattr(node, "ctx", None), ast.Load | None):
                continue  # targets of assignments and of del are not expressions
            text = lines[node.lineno - 1][node.col_offset : node.end_col_offset].decode("utf-8", "replace")
            if _SHORTEST <= len(text) <= _LONGEST:
                yield Row(path.relative_to(root).as_posix(), text, kind)


def _files(root: Path) -> list[Path]:
    """Source files that do not depend on how Python was built, in a fixed order."""
    paths = [path for path in root.glob("*.py") if not path.name.startswith(("_sysconfigdata", "sitecustomize"))]
    for package in _PACKAGES:
        paths += (root / package).rglob("*.py")
    return sorted(path for path in paths if not {"test", "tests"} & set(path.relative_to(root).parts))


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, except inside f-strings, where Python before 3.12 reports no true positions."""
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.JoinedStr):
            yield child
            yield from _nodes(child)
