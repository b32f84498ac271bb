"""Write an adapter for PEFT: explicit targets, a scale of exactly 1, the folder in place only when it is complete."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from torch import Tensor

from plait.checkpoints import Entry, Layout, Shard, is_url, local_path
from plait.engine import GrowingOutput
from plait.errors import AdapterError, OutputError, shorten
from plait.tensors.lowrank import LowRank

__all__ = ["VLLM_RANKS", "Kind", "Piece", "config_of", "tensors_of", "write_adapter"]

#: ranks that vLLM has kernels for (max_lora_rank)
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
WEIGHTS = "adapter_model.safetensors"
Kind = Literal["linear", "transposed", "embedding", "convolution"]


@dataclass(frozen=True, eq=False)
class Piece:
    """The change of one module.

    Attributes:
        module: its name, as PEFT finds it in the live model.
        factors: the change of the weight as it is stored; of a convolution, of (outputs, everything else).
        kind: how PEFT keeps the factors.
        shape: the weight's shape.
    """

    module: str
    factors: LowRank
    kind: Kind
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Rank under which it is written: at least 1, since PEFT knows no rank of 0."""
        return max(1, self.factors.rank)

    def padded(self, rank: int) -> Piece:
        """The same change with rows and columns of zeros, up to a rank."""
        more = rank - self.factors.rank
        if more <= 0:
            return self
        b = torch.nn.functional.pad(self.factors.b, (0, more))
        a = torch.nn.functional.pad(self.factors.a, (0, 0, 0, more))
        return Piece(self.module, LowRank(b, a), self.kind, self.shape)


def tensors_of(piece: Piece, dtype: torch.dtype) -> dict[str, Tensor]:
    """The two tensors of a module under PEFT's names and in its layout."""
    left, right = (part.to(dtype).contiguous() for part in (piece.factors.b, piece.factors.a))
    head = f"base_model.model.{piece.module}"
    if piece.kind == "embedding":  # (vocabulary, width) = (B A)ᵀ
        return {f"{head}.lora_embedding_A": left.mT.contiguous(), f"{head}.lora_embedding_B": right.mT.contiguous()}
    if piece.kind == "transposed":
        left, right = right.mT.contiguous(), left.mT.contiguous()
    if piece.kind == "convolution":
        right = right.reshape(right.shape[0], *piece.shape[1:])
        left = left.reshape(*left.shape, *(1 for _ in piece.shape[2:]))
    return {f"{head}.lora_A.weight": right, f"{head}.lora_B.weight": left}


def config_of(pieces: Sequence[Piece], base: str | None, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """adapter_config.json: r and alpha equal, module by module, so that the scale is exactly 1.

    Args:
        pieces: what the adapter changes.
        base: name of the base model.
        like: a parent's configuration, for what kind of task it is.
    """
    rank = Counter(piece.rank for piece in pieces).most_common(1)[0][0]
    other = {piece.module: piece.rank for piece in pieces if piece.rank != rank}
    parent = like or {}
    return {
        "alpha_pattern": other,
        "auto_mapping": None,
        "base_model_name_or_path": base or parent.get("base_model_name_or_path"),
        "bias": "none",
        "fan_in_fan_out": any(piece.kind == "transposed" for piece in pieces),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": rank,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": other,
        "revision": None,
        "target_modules": [piece.module for piece in pieces],
        "task_type": parent.get("task_type"),
        "use_dora": False,
        "use_rslora": False,
    }


def for_vllm(pieces: Sequence[Piece]) -> list[Piece]:
    """Bring an adapter within what vLLM loads: one rank that it has kernels for.

    Raises:
        AdapterError: for what it does not load.
    """
    largest = max(piece.rank for piece in pieces)
    rank = next((allowed for allowed in VLLM_RANKS if allowed >= largest), None)
    if rank is None:
        raise AdapterError(f"vLLM loads ranks up to {VLLM_RANKS[-1]}, and this adapter has {largest}: ask for less.")
    wrong = [piece.module for piece in pieces if piece.kind in ("convolution", "transposed")]
    if wrong:
        raise AdapterError(
            f"vLLM loads no LoRA of these modules, whose weights are no linear layers':\n{shorten(wrong)}"
        )
    return [piece.padded(rank) for piece in pieces]


def write_adapter(
    pieces: Iterable[Piece],
    out: str | Path,
    *,
    base: str | None = None,
    like: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    target: Literal["vllm"] | None = None,
    overwrite: bool = False,
    describe: Callable[[Mapping[str, str]], Mapping[str, bytes]] | None = None,
    fingerprint: str = "",
) -> dict[str, str]:
    """Write an adapter folder; it appears only when it is complete.

    Args:
        pieces: the changes, one per module.
        out: the folder to make.
        base: name of the base model.
        like: a parent's configuration.
        dtype: of the factors.
        target: whose limits are kept.
        overwrite: replace an existing output.
        describe: gives further small files, once the hash of every tensor is known.
        fingerprint: what tells one run from another.

    Returns:
        Tensor of the file → hash of its bytes.

    Raises:
        OutputError: as for a model; for a URL.
        AdapterError: for an adapter without any change, or one that `target` does not load.
    """
    if is_url(out):
        raise OutputError(f"{out}: adapters are written to a folder of this machine; copy it from there.")
    listed = list(pieces)
    if not listed:
        raise AdapterError("nothing is left to write: no tensor is changed.")
    if target == "vllm":
        listed = for_vllm(listed)
    config = config_of(listed, base, like)
    tensors = {name: t for piece in listed for name, t in tensors_of(piece.padded(1), dtype).items()}
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise AdapterError(f"{len(bad)} factors are not finite in {dtype}:\n{shorten(bad)}")
    entries = tuple(Entry(name, tuple(t.shape), t.dtype) for name, t in tensors.items())
    layout = Layout((Shard(WEIGHTS, entries),))
    output = GrowingOutput(local_path(str(out)), layout, fingerprint, overwrite)
    try:
        for name, tensor in tensors.items():
            output.write(name, 0, tensor.reshape(-1))
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        digests = {name: hash_of(tensor) for name, tensor in tensors.items()}
        more = describe(digests) if describe is not None else {}
        output.finish({"adapter_config.json": text.encode(), **more})
    except BaseException:
        output.abandon(keep=False)
        raise
    return digests


def hash_of(tensor: Tensor) -> str:
    """Hash the bytes of a tensor, as they are written."""
    flat: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return xxhash.xxh3_128_hexdigest(memoryview(flat))
