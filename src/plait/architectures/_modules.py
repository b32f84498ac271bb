"""Modules of a live model → names of tensors on disk: libraries put other prefixes in front of the same layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["match_flat", "match_modules"]

#: what libraries call parts today, and what files call them
_RENAMED = ((".mlp.", ".block_sparse_moe."),)


def match_modules(modules: Sequence[str], names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Find the module on disk that each module of an adapter is.

    Identity comes first. What is left is found by exchanging one prefix for another, the same for all modules that
    have it (`model.language_model.` for `language_model.model.`, `transformer.` for nothing): reversible, and only
    where every such module is found and no two of them are one.

    Args:
        modules: names without the parameter: `model.layers.0.self_attn.q_proj`.
        names: modules that the checkpoint has.

    Returns:
        Module → module on disk, and the modules that were not found.
    """
    found = {module: module for module in modules if module in names}
    for new, old in _RENAMED:
        for module in modules:
            if module not in found and (other := module.replace(new, old)) in names and new in module:
                found[module] = other
    left = [module for module in modules if module not in found]
    ends: dict[str, list[str]] = {}
    for name in names:
        pieces = name.split(".")
        for start in range(len(pieces)):
            ends.setdefault(".".join(pieces[start:]), []).append(name)
    lost: list[str] = []
    while left:
        edit = _edit(left[0], ends)
        if edit is None:
            lost.append(left.pop(0))
            continue
        old, new = edit
        moved = {m: new + m[len(old) :] for m in left if m.startswith(old)}
        taken = {*found.values()}
        good = {m: n for m, n in moved.items() if n in names and n not in taken}
        if left[0] not in good or len(set(good.values())) < len(good):
            lost.append(left.pop(0))
            continue
        found |= good
        left = [m for m in left if m not in good]
    return found, lost


def _edit(module: str, ends: dict[str, list[str]]) -> tuple[str, str] | None:
    """The exchange of prefixes under which a module has one counterpart: that which keeps most of its name."""
    pieces = module.split(".")
    numbers = [place for place, piece in enumerate(pieces) if piece.isdigit()]
    # the layer's number stays, and more than one word: another model may have a single `dense` too
    most = numbers[0] + 1 if numbers else max(1, len(pieces) - 1)
    for start in range(most):
        suffix = ".".join(pieces[start:])
        owners = ends.get(suffix, [])
        if len(owners) == 1:
            old = module[: len(module) - len(suffix)]
            return old, owners[0][: len(owners[0]) - len(suffix)]
        if len(owners) > 1:
            return None
    return None


def match_flat(modules: Sequence[str], names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The same for names whose dots were replaced by underscores: `down_blocks_0_attentions_1_proj_in`."""
    flat: dict[str, list[str]] = {}
    for name in names:
        pieces = name.split(".")
        for start in range(len(pieces)):
            flat.setdefault("_".join(pieces[start:]), []).append(name)
    found: dict[str, str] = {}
    lost: list[str] = []
    for module in modules:
        owners = flat.get(module, [])
        whole = [name for name in owners if name.replace(".", "_") == module]
        if len(whole or owners) == 1:
            found[module] = (whole or owners)[0]
        else:
            lost.append(module)
    return found, lost
