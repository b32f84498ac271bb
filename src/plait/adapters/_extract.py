"""From a base and a full fine-tune to the adapter that is closest to it, matrix by matrix."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from plait.adapters._write import Kind, Piece, write_adapter
from plait.architectures import roles_of
from plait.checkpoints import Checkpoint, LazyTensor, is_float
from plait.errors import IncompatibleModelsError, NonFiniteError, RecipeError, shorten
from plait.tensors.factors import factor
from plait.tensors.lowrank import choose_rank, from_svd

__all__ = ["Extraction", "Kept", "extract_adapter", "kind_of"]

REPORT = "extraction.json"
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")


@dataclass(frozen=True)
class Kept:
    """What was kept of one module's change.

    Attributes:
        rank: of the factors that were written.
        error: ‖what was left out‖ / ‖the change‖.
    """

    rank: int
    error: float


@dataclass(frozen=True)
class Extraction:
    """What an extraction kept.

    Attributes:
        kept: module → rank and relative error of its change.
        left: tensors that differ but have no low-rank form → ‖change‖ / ‖weight‖; the adapter lacks them.
        error: ‖everything that the adapter lacks‖ / ‖all changes‖.
    """

    kept: Mapping[str, Kept]
    left: Mapping[str, float]
    error: float


def extract_adapter(
    base: str,
    model: str,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    match: str = "*",
    dtype: torch.dtype = torch.float32,
    target: Literal["vllm"] | None = None,
    overwrite: bool = False,
) -> Extraction:
    """Write the adapter that is closest to model − base: of every matrix, its largest singular triplets.

    One matrix is held at a time. What has no low-rank form (norms, biases, fused experts) is left as in the base and
    named in the report, with how much of the change it is.

    Args:
        base: the model that the adapter will be put on.
        model: the full fine-tune.
        out: the folder to make; `extraction.json` in it is the report.
        rank: largest rank of a module.
        energy: share of each matrix's squared change that is kept.
        match: only tensors whose names match this pattern; the others are reported as left out.
        dtype: of the factors.
        target: whose limits are kept.
        overwrite: replace an existing output.

    Raises:
        RecipeError: without rank and energy.
        IncompatibleModelsError: if the models' tensors differ in name or shape.
    """
    if rank is None and energy is None:
        raise RecipeError("say how much is kept: -r RANK, --energy SHARE, or both.")
    first, second = Checkpoint.open(base), Checkpoint.open(model)
    pairs = _pairs(first, second)
    roles = roles_of(first.tensors)
    pieces: list[Piece] = []
    kept: dict[str, Kept] = {}
    left: dict[str, float] = {}
    missing = total = 0.0
    for name, (origin, other) in pairs.items():
        change, size = _difference(origin, other)
        square = float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
        if square == 0.0:
            continue
        total += square
        if not name.endswith(".weight") or change.ndim not in (2, 3, 4) or not fnmatchcase(name, match):
            left[name] = math.sqrt(square) / size if size > 0 else math.inf
            missing += square
            continue
        if change.ndim == 3 and "expert" in name:
            left[name] = math.sqrt(square) / size if size > 0 else math.inf
            missing += square
            continue
        piece, lost = _cut(
            name, change, square, rank, energy, kind_of(name, change.ndim, roles[name].kind, first.config)
        )
        pieces.append(piece)
        kept[piece.module] = Kept(piece.factors.rank, math.sqrt(lost / square))
        missing += lost
    found = Extraction(kept, left, math.sqrt(missing / total) if total > 0 else 0.0)
    report = json.dumps(_plain(found, first, second), indent=1, ensure_ascii=False) + "\n"
    write_adapter(
        pieces,
        out,
        base=first.hub_id or first.label,
        like={"task_type": _task(second.config)},
        dtype=dtype,
        target=target,
        overwrite=overwrite,
        describe=lambda _: {REPORT: report.encode()},
    )
    return found


def _pairs(base: Checkpoint, model: Checkpoint) -> dict[str, tuple[LazyTensor, LazyTensor]]:
    found: dict[str, tuple[LazyTensor, LazyTensor]] = {}
    problems: list[str] = []
    for name, tensor in base.tensors.items():
        if name in base.ties or not is_float(tensor.dtype):
            continue
        other = model.find(name)
        if other is None:
            problems.append(f"{name}: missing from {model.label}")
        elif other.shape != tensor.shape:
            problems.append(f"{name}: {list(tensor.shape)} in the base, {list(other.shape)} in the model")
        else:
            found[name] = (tensor, other)
    problems += [f"{n}: only in {model.label}" for n in model.tensors if base.find(n) is None and n not in model.ties]
    if problems:
        raise IncompatibleModelsError(f"{len(problems)} tensors cannot be aligned:\n{shorten(problems)}")
    return found


def _difference(base: LazyTensor, model: LazyTensor) -> tuple[Tensor, float]:
    """Model − base in float32, and ‖base‖, read piece by piece."""
    change = torch.empty(base.numel)
    square, step = 0.0, 1 << 20
    for start in range(0, base.numel, step):
        stop = min(start + step, base.numel)
        origin = base.read(start, stop).float()
        change[start:stop] = model.read(start, stop).float() - origin
        square += float(torch.linalg.vector_norm(origin, dtype=torch.float64)) ** 2
    if not bool(torch.isfinite(change).all()):
        raise NonFiniteError(f"{base.name!r} holds NaN or infinity in {base.source} or {model.source}.")
    return change.view(base.shape), math.sqrt(square)


def kind_of(name: str, dimensions: int, role: str, config: Mapping[str, Any] | None) -> Kind:
    """How PEFT keeps the factors of a weight, by what is known of it."""
    if dimensions > 2:
        return "convolution"
    if role == "embedding":
        return "embedding"
    conv1d = str((config or {}).get("model_type", "")) in _CONV1D_MODELS
    return "transposed" if conv1d and name.removesuffix(".weight").rpartition(".")[2] in _CONV1D else "linear"


def _cut(
    name: str, change: Tensor, square: float, rank: int | None, energy: float | None, kind: Kind
) -> tuple[Piece, float]:
    """The largest triplets of one change, and the squared norm of the rest."""
    shape = tuple(change.shape)
    factors = factor(change.view(shape[0], -1))
    resolved = max(1, factors.rank)
    wanted = energy
    if energy is not None:  # of all of it, rounding included
        resolved_share = float(factors.s[:resolved].double().square().sum()) / square
        wanted = min(1.0, energy / resolved_share) if resolved_share > 0 else energy
    count = choose_rank(factors.s[:resolved], rank, wanted)
    parts = factors.top(count)
    lost = max(0.0, square - float(factors.s[:count].double().square().sum()))
    return Piece(name.removesuffix(".weight"), from_svd(parts), kind, shape), lost


def _task(config: Mapping[str, Any] | None) -> str | None:
    listed = (config or {}).get("architectures")
    name = str(listed[0]) if isinstance(listed, list) and listed else ""
    tasks = {"ForCausalLM": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
    return next((task for end, task in tasks.items() if name.endswith(end)), None)


def _plain(found: Extraction, base: Checkpoint, model: Checkpoint) -> dict[str, Any]:
    return {
        "base": base.hub_id or base.label,
        "model": model.hub_id or model.label,
        "error": found.error,
        "modules": {module: {"rank": k.rank, "error": k.error} for module, k in found.kept.items()},
        "left_out": dict(found.left),
    }
