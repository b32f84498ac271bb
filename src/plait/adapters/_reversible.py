"""Reversible merging: adapters as combinations of a few basis models, from which each is recovered.

Alipour & Mohammadi Amiri, "Towards Reversible Model Merging For Low-rank Weights", 2025, arXiv 2510.14163. No code was
published; this is the closed form that fits its description. The factors X₁ … X_T of T adapters (A, and B apart) are
written as X̂ᵢ = Σⱼ cᵢⱼ Wⱼ with p orthonormal Wⱼ that minimise Σ ‖Xᵢ − X̂ᵢ‖²: with p = T nothing is lost. Factors that
make the same product in another basis (A G, G⁻¹ B) look unlike, so they are balanced and turned towards the first
adapter's before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.adapters._extract import Kept
from plait.adapters._read import open_adapter, pieces_of
from plait.adapters._write import Piece, write_adapter
from plait.checkpoints import Checkpoint, Entry, Layout, Shard, local_path
from plait.engine import GrowingOutput
from plait.errors import AdapterError, CheckpointError, RecipeError, suggest
from plait.tensors.lowrank import LowRank, from_svd

__all__ = ["pack_adapters", "recover_adapter"]

WEIGHTS, FACTS = "basis.safetensors", "basis.json"


def pack_adapters(
    adapters: Mapping[str, str], out: str | Path, basis: int, *, overwrite: bool = False
) -> dict[str, dict[str, float]]:
    """Write p basis models and, for each adapter and module, the coefficients that recover it.

    Args:
        adapters: name → adapter.
        out: the folder to make.
        basis: p, at most the number of adapters; with all of them every adapter is recovered exactly.
        overwrite: replace an existing output.

    Returns:
        Adapter → module → ‖recovered change − change‖ / ‖change‖, measured.
    """
    if not 1 <= basis <= len(adapters):
        raise RecipeError(f"{basis} basis models of {len(adapters)} adapters; give 1 to {len(adapters)}.")
    opened = {name: open_adapter(reference) for name, reference in adapters.items()}
    parts = {name: {piece.module: piece for piece in pieces_of(adapter)} for name, adapter in opened.items()}
    modules = list(dict.fromkeys(module for pieces in parts.values() for module in pieces))
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    errors: dict[str, dict[str, float]] = {name: {} for name in adapters}
    for module in modules:
        owners = [name for name in adapters if module in parts[name]]
        pieces = [parts[name][module] for name in owners]
        if len({piece.shape for piece in pieces}) > 1:
            raise AdapterError(f"the adapters change {module} in weights of other shapes; they are for other models.")
        count = min(basis, len(owners))
        turned = _turned([piece.factors for piece in pieces])
        recovered = []
        for side, stack in (("A", [part.a for part in turned]), ("B", [part.b for part in turned])):
            models, coefficients = _basis(stack, count)
            tensors[f"{module}.{side}.basis"], tensors[f"{module}.{side}.coefficients"] = models, coefficients
            recovered.append(torch.einsum("tp,pij->tij", coefficients.double(), models.double()))
        for i, (name, piece) in enumerate(zip(owners, pieces, strict=True)):
            ours = LowRank(recovered[1][i], recovered[0][i])
            errors[name][module] = _distance(ours, piece.factors)
        facts[module] = {"owners": owners, "kind": pieces[0].kind, "shape": list(pieces[0].shape)}
    configs = {name: dict(adapter.file.adapter or {}) for name, adapter in opened.items()}
    text = json.dumps({"schema": 1, "basis": basis, "modules": facts, "adapters": configs, "errors": errors}, indent=1)
    entries = tuple(Entry(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items())
    output = GrowingOutput(local_path(str(out)), Layout((Shard(WEIGHTS, entries),)), "", overwrite)
    try:
        for name, tensor in tensors.items():
            output.write(name, 0, tensor.reshape(-1))
        output.finish({FACTS: (text + "\n").encode()})
    except BaseException:
        output.abandon(keep=False)
        raise
    return errors


def recover_adapter(folder: str | Path, name: str, out: str | Path, *, overwrite: bool = False) -> dict[str, Kept]:
    """Write one of the adapters that `pack_adapters` packed, for PEFT.

    Returns:
        Module → rank and relative error, as it was measured when the adapters were packed.

    Raises:
        CheckpointError: if the folder holds no packed adapters.
        RecipeError: for a name that is not among them.
    """
    home = Path(folder)
    try:
        facts = json.loads((home / FACTS).read_text(encoding="utf-8"))
        known, modules, errors = facts["adapters"], facts["modules"], facts["errors"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{home} holds no packed adapters ({error}); `plait adapter pack` makes them.") from None
    if name not in known:
        raise RecipeError(f"{home} holds {', '.join(known)}, not {name!r}.{suggest(name, known)}")
    stored = Checkpoint.open(home / WEIGHTS)
    pieces: list[Piece] = []
    kept: dict[str, Kept] = {}
    for module, fact in modules.items():
        if name not in fact["owners"]:
            continue
        place = fact["owners"].index(name)
        sides = []
        for side in ("B", "A"):
            models, coefficients = (stored[f"{module}.{side}.{word}"].load() for word in ("basis", "coefficients"))
            sides.append(torch.einsum("p,pij->ij", coefficients[place].double(), models.double()))
        factors = from_svd(LowRank(*sides).svd())
        pieces.append(Piece(module, factors, fact["kind"], tuple(fact["shape"])))
        kept[module] = Kept(factors.rank, float(errors[name][module]))
    write_adapter(pieces, out, like=known[name], overwrite=overwrite)
    return kept


def _turned(parts: Sequence[LowRank]) -> list[LowRank]:
    """The same changes with balanced factors of one rank, each turned as near as it can be to the first's."""
    rank = max(part.rank for part in parts)
    found: list[LowRank] = []
    for part in parts:
        triplets = part.svd()
        root = triplets.s.sqrt()
        more = rank - root.numel()
        b = torch.nn.functional.pad(triplets.u * root, (0, more))
        a = torch.nn.functional.pad(triplets.vh * root[:, None], (0, 0, 0, more))
        if found:  # orthogonal Procrustes: the turn that brings [A; Bᵀ] nearest to the first's
            u, _, vh = torch.linalg.svd(found[0].a @ a.mT + found[0].b.mT @ b)
            turn = u @ vh
            a, b = turn @ a, b @ turn.mT
        found.append(LowRank(b, a))
    return found


def _basis(stack: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The `count` orthonormal models that come nearest to all matrices, and each matrix's coefficients."""
    flat = torch.stack([matrix.reshape(-1).double() for matrix in stack])
    u, s, vh = torch.linalg.svd(flat, full_matrices=False)
    models = vh[:count].reshape(count, *stack[0].shape)
    return models.float().contiguous(), (u[:, :count] * s[:count]).float().contiguous()


def _distance(ours: LowRank, theirs: LowRank) -> float:
    """‖ours − theirs‖ / ‖theirs‖, from the factors: the difference is itself of low rank."""
    wide = LowRank(theirs.b.double(), theirs.a.double())
    gap = LowRank(torch.cat([ours.b, -wide.b], dim=1), torch.cat([ours.a, wide.a]))
    size = wide.squared_norm()
    if size <= 0:
        return 0.0
    left, right = torch.linalg.qr(gap.b.double()).R, torch.linalg.qr(gap.a.double().mT).R
    return float((left @ right.mT).norm()) / math.sqrt(size)
