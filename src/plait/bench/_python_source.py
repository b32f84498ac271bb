"""Expressions from the standard library's own source, labelled by what Python's grammar says they are."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from plait.bench._split import Row
from plait.errors import PlaitError

__all__ = ["expressions", "names", "operators", "source_files"]

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
_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.And: "and",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.Eq: "==",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.In: "in",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Mod: "%",
    ast.Mult: "*",
    ast.NotEq: "!=",
    ast.NotIn: "not in",
    ast.Or: "or",
    ast.Sub: "-",
}
_SHORTEST, _LONGEST = 12, 60  # characters: long enough to hold something, short enough for some 16 tokens


def expressions() -> Iterator[Row]:
    """Yield (file, expression on one line, kind of its outermost node), in the order of files and syntax trees.

    The kind cannot be read from which characters occur: a call holds comparisons, a comparison holds calls. It takes
    the order of the tokens, which the mean of a frozen encoder's outputs hardly keeps: hence a task to fine-tune for.

    Raises:
        PlaitError: Python was installed without the source of its library.
    """
    for source, lines, tree in _trees():
        for node in _nodes(tree):
            kind = _KINDS.get(type(node))
            if kind is None or not isinstance(node, ast.expr) or node.lineno != node.end_lineno:
                continue
            if not isinstance(getattr(node, "ctx", None), ast.Load | None):
                continue  # targets of assignments and of del are not expressions
            text = _piece(lines, node.lineno, node.col_offset, node.end_col_offset)
            if _SHORTEST <= len(text) <= _LONGEST:
                yield Row(source, text, kind)


def operators() -> Iterator[Row]:
    """Yield (file, expression whose operator is a question mark, the operator)."""
    for source, lines, tree in _trees():
        for node in _nodes(tree):
            if isinstance(node, ast.Compare) and len(node.ops) == 1:
                left, operator, right = node.left, node.ops[0], node.comparators[0]
            elif isinstance(node, ast.BinOp):
                left, operator, right = node.left, node.op, node.right
            elif isinstance(node, ast.BoolOp) and len(node.values) == 2:
                (left, right), operator = node.values, node.op
            else:
                continue
            if type(operator) in _OPERATORS and node.lineno == node.end_lineno:
                before = _piece(lines, node.lineno, node.col_offset, left.end_col_offset)
                after = _piece(lines, node.lineno, right.col_offset, node.end_col_offset)
                if _SHORTEST <= len(before) + len(after) <= _LONGEST:
                    yield Row(source, f"{before} ? {after}", _OPERATORS[type(operator)])


def names() -> Iterator[Row]:
    """Yield (file, identifier, what it names where it is introduced); names of several kinds are left out later."""
    for source, _, tree in _trees():
        for node in _nodes(tree):
            match node:
                case ast.ClassDef(name=name):
                    yield Row(source, name, "class")
                case ast.FunctionDef(name=name):
                    yield Row(source, name, "function")
                case ast.arg(arg=name):
                    yield Row(source, name, "argument")
                case ast.Attribute(attr=name, ctx=ast.Store()):
                    yield Row(source, name, "attribute")
                case ast.Name(id=name, ctx=ast.Store()):
                    yield Row(source, name, "variable")


def _trees() -> Iterator[tuple[str, list[bytes], ast.Module]]:
    """Yield (file, lines, syntax tree) of the standard library.

    Raises:
        PlaitError: Python was installed without the source of its library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = source_files(root)
    if not files:
        raise PlaitError(
            f"no source of the standard library under {root}; this task needs a Python with its .py files."
        )
    for path in files:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own strings are not ours to report
            yield path.relative_to(root).as_posix(), source.splitlines(), ast.parse(source)


def _piece(lines: list[bytes], line: int, start: int, end: int | None) -> str:
    return lines[line - 1][start:end].decode("utf-8", "replace")


def source_files(root: Path) -> list[Path]:
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
