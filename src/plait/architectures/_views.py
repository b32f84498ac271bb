"""One model seen with the names and the layout of another: renamed, in a tower, experts fused or one by one.

Every view is a re-ordering of bytes and can be undone: a tensor is one or several flat ranges of the tensors on disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from plait.architectures._spellings import FUSED_EXPERTS, FUSED_ROWS, spellings
from plait.architectures._towers import Placement, Shapes, place

__all__ = ["Range", "View", "view_of"]

_MEMBER = re.compile(r"(.+\.experts)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Range:
    """Flat elements [start, start + count) of a tensor."""

    name: str
    start: int
    count: int


@dataclass(frozen=True)
class View:
    """How one model looks in another's names.

    Attributes:
        tensors: name there → the ranges of tensors here that it is made of.
        unseen: tensors here that nothing there is made of.
        rest: tensors there that lie in other towers.
        tower: prefix of the tower there; empty where this model is all of it.
        facts: what was exchanged, for a note.
    """

    tensors: Mapping[str, tuple[Range, ...]]
    unseen: tuple[str, ...]
    rest: frozenset[str]
    tower: str
    facts: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """Whether every tensor is found under its own name."""
        return all(len(r) == 1 and r[0].name == name for name, r in self.tensors.items())


def view_of(part: Shapes, whole: Shapes, tower: str | None = None, label: str = "") -> View:
    """Find each tensor of `whole` among those of `part`.

    Args:
        part: names and shapes of a model.
        whole: names and shapes of the model whose names count.
        tower: prefix in `whole` under which to look; found by itself if None.
        label: how messages call the part.

    Raises:
        IncompatibleModelsError: if there are several places where `part` could be.
    """
    here, there = spellings(part), spellings(whole)
    placed = place({here[n]: s for n, s in part.items()}, {there[n]: s for n, s in whole.items()}, tower, label)
    known: dict[str, str] = {}  # name there, as spelt → name here
    for name, spelt in here.items():
        if spelt in placed.names:
            known[placed.names[spelt]] = name
    finder = _Finder(part, {there[n]: s for n, s in whole.items()}, known)
    tensors: dict[str, tuple[Range, ...]] = {}
    for name, spelt in there.items():
        ranges = finder.ranges(spelt)
        if ranges:
            tensors[name] = ranges
    used = {r.name for ranges in tensors.values() for r in ranges}
    back = {spelt: name for name, spelt in there.items()}
    rest = frozenset(back[s] for s in placed.rest if back[s] not in tensors)
    unseen = tuple(name for name in part if name not in used)
    return View(tensors, unseen, rest, placed.tower if rest else "", _facts(placed, tensors, finder))


def _facts(placed: Placement, tensors: Mapping[str, tuple[Range, ...]], finder: _Finder) -> tuple[str, ...]:
    facts = [f"{old or 'nothing'} → {new or 'nothing'}" for old, new in placed.edits]
    if finder.fused:
        facts.append(f"{finder.fused} fused tensors are made of single ones")
    if finder.split:
        facts.append(f"{finder.split} tensors are cut out of fused ones")
    others = sum(len(r) == 1 and r[0].name != n for n, r in tensors.items()) - finder.split
    if others and not placed.edits:
        facts.append(f"{others} tensors have other names")
    return tuple(facts)


class _Finder:
    """Ranges of the tensors here that make a tensor there."""

    def __init__(self, part: Shapes, whole: Shapes, known: Mapping[str, str]) -> None:
        self.part, self.whole, self.known = part, whole, known
        self.fused = self.split = 0

    def _shape(self, name: str) -> tuple[int, ...] | None:
        return self.part[self.known[name]] if name in self.known else None

    def ranges(self, name: str) -> tuple[Range, ...]:
        """Find a tensor as it is, joined from several, or cut out of one."""
        if name in self.known:
            return (self._all(name),)
        joined = self._joined_experts(name) or self._joined_rows(name)
        if joined:
            self.fused += 1
            return joined
        cut = self._cut_expert(name) or self._cut_rows(name)
        self.split += bool(cut)
        return cut

    def _all(self, name: str) -> Range:
        own = self.known[name]
        return Range(own, 0, prod(self.part[own]))

    def _joined_experts(self, name: str) -> tuple[Range, ...]:
        """(experts, rows, columns) from the experts' own matrices, below each other."""
        shape = self.whole[name]
        for end, pieces in FUSED_EXPERTS.items():
            if not name.endswith(f".{end}") or len(shape) != 3:
                continue
            module = name.removesuffix(end.partition(".")[2])
            names = [f"{module}{expert}.{piece}" for expert in range(shape[0]) for piece in pieces]
            shapes = [self._shape(n) for n in names]
            if f"{module}{shape[0]}.{pieces[0]}" in self.known:
                return ()  # more experts here than there
            rows = [s[0] for s in shapes[: len(pieces)] if s is not None and len(s) == 2]
            fits = sum(rows) == shape[1] and all(s is not None and len(s) == 2 and s[1] == shape[2] for s in shapes)
            return tuple(self._all(n) for n in names) if fits else ()
        return ()

    def _cut_expert(self, name: str) -> tuple[Range, ...]:
        found = _MEMBER.fullmatch(name)
        if found is None:
            return ()
        module, expert, piece = found.group(1), int(found.group(2)), found.group(3)
        for end, pieces in FUSED_EXPERTS.items():
            if piece not in pieces:
                continue
            fused = f"{module}.{end.partition('.')[2]}"
            shape, own = self._shape(fused), self.whole[name]
            before = sum(self.whole.get(f"{module}.{expert}.{p}", (0,))[0] for p in pieces[: pieces.index(piece)])
            total = sum(self.whole.get(f"{module}.{expert}.{p}", (0,))[0] for p in pieces)
            if shape is None or len(shape) != 3 or shape[1:] != (total, own[-1]) or expert >= shape[0]:
                return ()
            if expert + 1 < shape[0] and f"{module}.{expert + 1}.{piece}" not in self.whole:
                return ()  # more experts here than there
            return (Range(self.known[fused], (expert * total + before) * own[-1], prod(own)),)
        return ()

    def _joined_rows(self, name: str) -> tuple[Range, ...]:
        for end, pieces in FUSED_ROWS.items():
            if name.endswith(f".{end}"):
                names = [name.removesuffix(end) + piece for piece in pieces]
                shapes = [s for n in names if (s := self._shape(n)) is not None]
                whole = self.whole[name]
                if len(shapes) == len(pieces) and sum(s[0] for s in shapes) == whole[0]:
                    return tuple(self._all(n) for n in names) if all(s[1:] == whole[1:] for s in shapes) else ()
        return ()

    def _cut_rows(self, name: str) -> tuple[Range, ...]:
        for end, pieces in FUSED_ROWS.items():
            for index, piece in enumerate(pieces):
                if not name.endswith(f".{piece}"):
                    continue
                prefix = name.removesuffix(piece)
                shape = self._shape(prefix + end)
                siblings = [self.whole.get(prefix + p) for p in pieces]
                if shape is None or any(s is None or s[1:] != shape[1:] for s in siblings):
                    continue
                rows = [s[0] for s in siblings if s is not None]
                if sum(rows) == shape[0]:
                    width = prod(shape[1:])
                    return (Range(self.known[prefix + end], sum(rows[:index]) * width, rows[index] * width),)
        return ()
