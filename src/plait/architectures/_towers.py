"""Where one model's tensors stand in another: a language model inside a vision-language model, an encoder in its task.

Nothing is known of any family here. A list of layers is found again by the names and shapes inside its layers; the
prefix that differs is then exchanged in the other names too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plait.architectures._roles import layer_of
from plait.architectures._spellings import FUSED_ROWS
from plait.errors import IncompatibleModelsError

__all__ = ["Placement", "place"]

Shapes = Mapping[str, tuple[int, ...]]
#: what some files keep and others compute
_BUFFERS = ("inv_freq", "position_ids", "masked_bias")


@dataclass(frozen=True)
class Placement:
    """What was found.

    Attributes:
        names: tensor → what it is called in the other model; absent where it has no counterpart there.
        edits: prefixes that were exchanged, (here, there).
        rest: tensors of the other model that lie in other towers, so that this one says nothing about them.
        tower: where in the other model this one lies; empty where it is all of it.
    """

    names: Mapping[str, str]
    edits: tuple[tuple[str, str], ...] = ()
    rest: frozenset[str] = frozenset()
    tower: str = ""


def place(part: Shapes, whole: Shapes, tower: str | None = None, label: str = "") -> Placement:
    """Find every tensor of `part` in `whole`.

    Args:
        part: a model's names and shapes.
        whole: the names and shapes of the model whose names count.
        tower: prefix in `whole` under which to look; found by itself if None.
        label: how messages call the part.

    Raises:
        IncompatibleModelsError: if its layers fit several lists of layers.
    """
    here, there = _stacks(part), _stacks(whole)
    moved: dict[str, str] = {}
    for stack in sorted(here, key=lambda s: -len(here[s])):
        found = _counterpart(stack, here[stack], there, set(moved.values()), tower, label)
        if found is not None:
            moved[stack] = found
    edits = tuple(dict.fromkeys(_exchange(old, new) for old, new in moved.items()))
    names = _named(part, whole, moved, edits)
    return Placement(names, tuple(e for e in edits if e[0] != e[1]), *_rest(names, whole, moved, there))


def _stacks(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """List of layers → what lies in it, by the names behind it, without what files keep in different pieces."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    fused = (*FUSED_ROWS, *(piece for pieces in FUSED_ROWS.values() for piece in pieces))
    for name, shape in shapes.items():
        place = layer_of(name)
        if place is not None:
            inside = found.setdefault(place[0], {})
            if ".experts." not in name and not name.endswith((*fused, *_BUFFERS)):
                inside[name[len(place[0]) :].removeprefix(".")] = shape
    return found


def _counterpart(
    stack: str,
    inside: Mapping[str, tuple[int, ...]],
    there: Mapping[str, Mapping[str, tuple[int, ...]]],
    taken: set[str],
    tower: str | None,
    label: str,
) -> str | None:
    """The list of layers of the other model that is the same by the names and shapes in it."""
    same = [s for s in there if s not in taken and there[s] == inside and _under(s, tower)]
    if stack in same or len(same) < 2:
        return stack if stack in same or (tower is None and stack in there and not same) else next(iter(same), None)
    ending = [s for s in same if s.endswith(f".{stack}")]
    if len(ending) == 1:
        return ending[0]
    raise IncompatibleModelsError(
        f"the layers {stack} of {label or 'one model'} could be {' or '.join(same)} of the larger model, by names and "
        f"shapes. Say which with `tower: {same[0].rpartition('.')[0] or same[0]}`."
    )


def _under(name: str, tower: str | None) -> bool:
    return tower is None or not tower or name == tower or name.startswith(f"{tower}.")


def _exchange(old: str, new: str) -> tuple[str, str]:
    """The prefixes in which two names differ."""
    a, b = old.split("."), new.split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return ".".join(a), ".".join(b)


def _swap(name: str, old: str, new: str) -> str | None:
    if old and not name.startswith(f"{old}."):
        return None
    tail = name[len(old) + 1 :] if old else name
    return f"{new}.{tail}" if new else tail


def _named(part: Shapes, whole: Shapes, moved: Mapping[str, str], edits: tuple[tuple[str, str], ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    taken: set[str] = set()
    outside: list[str] = []
    for name in part:
        place = layer_of(name)
        if place is None or place[0] not in moved:
            outside.append(name)
            continue
        found[name] = moved[place[0]] + name[len(place[0]) :]
        taken.add(found[name])
    for name in outside:
        ways = [_swap(name, old, new) for old, new in edits]
        ways += [name, *_heads(name, whole)]
        fitting = next((w for w in ways if w is not None and w in whole and w not in taken), None)
        if fitting is not None:
            found[name] = fitting
            taken.add(fitting)
    return found


def _heads(name: str, whole: Shapes) -> list[str]:
    """The output projection, which libraries have moved in and out of the tower."""
    at = f".{name}".rfind(".lm_head.")
    if at < 0:
        return []
    tail = name[at:]
    found = [other for other in whole if other == tail or other.endswith(f".{tail}")]
    return found if len(found) == 1 else []


def _rest(
    names: Mapping[str, str],
    whole: Shapes,
    moved: Mapping[str, str],
    there: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> tuple[frozenset[str], str]:
    """Tensors in other towers of the larger model, and the root of the tower that was found."""
    others = [stack for stack in there if stack not in moved.values()]
    if not moved or not others:
        return frozenset(), ""
    main = max(moved.values(), key=lambda s: sum(1 for n in whole if n.startswith(f"{s}.")))
    root = main.rpartition(".")[0]
    regions = tuple(f"{_region(stack, list(moved.values()))}." for stack in others)
    covered = set(names.values())
    rest = {
        name
        for name in whole
        if name not in covered
        and (name.startswith(regions) or (root and not name.startswith(f"{root}.") and ".lm_head." not in f".{name}"))
        and not any(name.startswith(f"{stack}.") for stack in moved.values())
    }
    return frozenset(rest), root or main


def _region(stack: str, kept: list[str]) -> str:
    """The part of a name that no list of layers of the tower shares."""
    pieces = stack.split(".")
    for count in range(1, len(pieces) + 1):
        prefix = ".".join(pieces[:count])
        if not any(f"{other}.".startswith(f"{prefix}.") for other in kept):
            return prefix
    return stack
