"""The same adapter in another rank, dtype or key style; and what an adapter holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from plait.adapters._extract import Kept
from plait.adapters._read import open_adapter, pieces_of
from plait.adapters._write import Piece, tensors_of, write_adapter
from plait.checkpoints import Checkpoint, Entry, Layout, Shard, local_path, short
from plait.engine import GrowingOutput
from plait.tensors.lowrank import choose_rank, from_svd

__all__ = ["AdapterInfo", "Style", "adapter_info", "convert_adapter", "cut"]

Style = Literal["peft", "diffusers", "kohya"]


def cut(piece: Piece, rank: int | None, energy: float | None) -> tuple[Piece, Kept]:
    """Truncate one change by its factors; without rank and energy it stays as it is."""
    if rank is None and energy is None:
        return piece, Kept(piece.factors.rank, 0.0)
    parts = piece.factors.svd()
    count = choose_rank(parts.s, rank, energy)
    squares = parts.s.square()
    whole = float(squares.sum())
    error = math.sqrt(float(squares[count:].sum()) / whole) if whole > 0 else 0.0
    return Piece(piece.module, from_svd(parts.top(count)), piece.kind, piece.shape), Kept(count, error)


def convert_adapter(
    adapter: str,
    out: str | Path,
    *,
    base: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    dtype: torch.dtype | None = None,
    style: Style = "peft",
    component: str = "unet",
    target: Literal["vllm"] | None = None,
    overwrite: bool = False,
) -> Mapping[str, Kept]:
    """Write an adapter anew.

    Args:
        adapter: what to read.
        out: the folder to make.
        base: the model it is for; needed to give Kohya's flattened names their dots back.
        rank: largest rank of a module.
        energy: share of each change's squared norm that is kept.
        dtype: of the factors; by default that of the input.
        style: whose names and scales are written.
        component: of a pipeline, for the names of diffusers and Kohya: unet, transformer, text_encoder (te, te1, te2).
        target: whose limits are kept.
        overwrite: replace an existing output.

    Returns:
        Module → rank and relative error.

    Raises:
        AdapterError: for what has no low-rank form.
    """
    opened = open_adapter(adapter)
    found = [cut(piece, rank, energy) for piece in pieces_of(opened, Checkpoint.open(base) if base else None)]
    pieces = [piece for piece, _ in found]
    kinds = [tensor.dtype for tensor in opened.file.tensors.values() if tensor.dtype.is_floating_point]
    wanted = dtype or Counter(kinds).most_common(1)[0][0]
    if style == "peft":
        like = opened.file.adapter or {}
        write_adapter(pieces, out, base=base, like=like, dtype=wanted, target=target, overwrite=overwrite)
    else:
        name = "pytorch_lora_weights.safetensors" if style == "diffusers" else "lora.safetensors"
        _write(_renamed(pieces, style, component, wanted), name, out, overwrite)
    return {piece.module: kept for piece, kept in found}


def _renamed(pieces: Sequence[Piece], style: Style, component: str, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for piece in pieces:
        module = piece.module.removeprefix(f"{component}.")
        a, b = tensors_of(piece.padded(1), dtype).values()
        if style == "diffusers":
            tensors |= {f"{component}.{module}.lora_A.weight": a, f"{component}.{module}.lora_B.weight": b}
            continue
        head = f"lora_{component}_{module.replace('.', '_')}"
        alpha = torch.tensor(float(piece.rank), dtype=dtype)
        tensors |= {f"{head}.lora_down.weight": a, f"{head}.lora_up.weight": b, f"{head}.alpha": alpha}
    return tensors


def _write(tensors: Mapping[str, Tensor], name: str, out: str | Path, overwrite: bool) -> None:
    entries = tuple(Entry(key, tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items())
    output = GrowingOutput(local_path(str(out)), Layout((Shard(name, entries),)), "", overwrite)
    try:
        for key, tensor in tensors.items():
            output.write(key, 0, tensor.reshape(-1))
        output.finish({})
    except BaseException:
        output.abandon(keep=False)
        raise


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter holds.

    Attributes:
        style: whose names it uses.
        parameters: numbers stored.
        dtypes: dtype → number of tensors.
        modules: module → rank, scale, shape, ‖Δ‖ and the rank that carries 99 % of its energy.
        features: what it has beside plain factors.
        full: weights that were trained in full.
        base: the base its configuration names.
    """

    style: str
    parameters: int
    dtypes: Mapping[str, int]
    modules: Mapping[str, Mapping[str, Any]]
    features: Sequence[str]
    full: Sequence[str]
    base: str | None


def adapter_info(reference: str) -> AdapterInfo:
    """Read an adapter's headers and factors."""
    adapter = open_adapter(reference)
    modules: dict[str, dict[str, Any]] = {}
    features: set[str] = set()
    words = {"magnitude": "DoRA", "tokens": "trained tokens", "bias": "biases", "copy": "a copy of base weights"}
    for name, module in adapter.modules.items():
        features |= {words[part] for part in module.parts if part in words}
        if module.pair is None:
            continue
        a, b = (part.load().double() for part in module.pair)
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        values = torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.mT).R.mT) * abs(module.scale)
        if b.shape[1] == a.shape[0]:
            modules[name] = {
                "rank": module.rank,
                "scale": module.scale,
                "shape": [b.shape[0], a.shape[1]],
                "norm": float(values.norm()),
                "rank99": choose_rank(values, None, 0.99) if float(values.sum()) > 0 else 0,
            }
    if adapter.config is not None and adapter.config.rslora:
        features.add("rsLoRA")
    if adapter.full:
        features.add("weights trained in full")
    tensors = adapter.file.tensors.values()
    named = (adapter.file.adapter or {}).get("base_model_name_or_path")
    return AdapterInfo(
        adapter.style,
        adapter.file.parameters,
        dict(Counter(short(tensor.dtype) for tensor in tensors)),
        modules,
        sorted(features),
        sorted(adapter.full),
        named if isinstance(named, str) else None,
    )
