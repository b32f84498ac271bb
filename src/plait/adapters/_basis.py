"""Orthogonal Adaptation: frozen input sides that do not overlap, so that adapters trained apart add up.

Po et al., "Orthogonal Adaptation for Modular Customization of Diffusion Models", CVPR 2024, arXiv 2312.02432: of one
orthogonal matrix per layer, each concept takes rows of its own as its frozen A; then Aᵢ Aⱼᵀ = 0, and Σ BₖAₖ does to
the inputs that concept i reads just what BᵢAᵢ does.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from plait.adapters._read import open_adapter, pieces_of
from plait.adapters._write import Piece, write_adapter
from plait.architectures import roles_of
from plait.checkpoints import Checkpoint
from plait.errors import RecipeError
from plait.tensors.lowrank import LowRank

__all__ = ["orthogonal_basis", "overlap", "start_adapter"]


def orthogonal_basis(width: int, rank: int, index: int, *, seed: int = 0, name: str = "") -> Float[Tensor, "rank n"]:
    """Return rows index · rank … of a random orthogonal matrix of the layer.

    The matrix is a cosine transform with its frequencies in random order and random signs of its columns: exactly
    orthogonal, and any of its rows is known without the others, however wide the layer.

    Args:
        width: n, number of inputs of the layer.
        rank: number of rows.
        index: which concept: two concepts share no row.
        seed: of the matrix; all concepts must use the same.
        name: of the layer, so that layers differ.

    Raises:
        RecipeError: if the layer has not so many rows.
    """
    if rank < 1 or index < 0 or (index + 1) * rank > width:
        raise RecipeError(
            f"concept {index} of rank {rank} needs rows up to {(index + 1) * rank}, but {name or 'the layer'} has "
            f"{width} inputs: {width // max(rank, 1)} concepts of this rank fit."
        )
    key = int.from_bytes(hashlib.blake2b(f"{seed}\0{name}\0{width}".encode(), digest_size=16).digest(), "little")
    random = np.random.Generator(np.random.Philox(key=key))
    signs = random.integers(0, 2, width) * 2.0 - 1.0
    frequencies = random.permutation(width)[index * rank : (index + 1) * rank]
    columns = np.arange(width) + 0.5
    rows = np.cos(math.pi * frequencies[:, None] * columns / width) * math.sqrt(2.0 / width) * signs
    rows[frequencies == 0] *= math.sqrt(0.5)
    return torch.from_numpy(rows).float()


def start_adapter(
    base: str, out: str | Path, *, targets: list[str], rank: int, index: int, seed: int = 0, overwrite: bool = False
) -> int:
    """Write an adapter to start training from: A from the shared orthogonal matrices, B zero.

    A (`lora_A`) must stay frozen in training.

    Args:
        base: the model.
        out: the folder to make.
        targets: ends of module names: `q_proj`, `self_attn.v_proj`.
        rank: of every module.
        index: which concept.
        seed: shared by all concepts.
        overwrite: replace an existing output.

    Returns:
        Number of modules.
    """
    model = Checkpoint.open(base)
    roles = roles_of(model.tensors)
    pieces = []
    for name, tensor in model.tensors.items():
        module = name.removesuffix(".weight")
        wanted = any(module == end or module.endswith(f".{end}") for end in targets)
        if wanted and module != name and len(tensor.shape) == 2 and roles[name].kind != "embedding":
            rows = orthogonal_basis(tensor.shape[1], rank, index, seed=seed, name=module)
            pieces.append(Piece(module, LowRank(torch.zeros(tensor.shape[0], rank), rows), "linear", tensor.shape))
    if not pieces:
        raise RecipeError(f"no linear layer of {model.label} ends in {', '.join(targets)}.")
    write_adapter(pieces, out, base=model.hub_id or model.label, overwrite=overwrite)
    return len(pieces)


def overlap(first: str, second: str) -> dict[str, float]:
    """Return module → ‖QᵢQⱼᵀ‖²_F / min(rᵢ, rⱼ) of the input sides of two adapters.

    0 where their sum does not interfere, 1 where one reads nothing that the other does not.
    """
    sides = []
    for reference in (first, second):
        pieces = pieces_of(open_adapter(reference))
        sides.append({piece.module: torch.linalg.qr(piece.factors.a.double().mT).Q for piece in pieces})
    ours, theirs = sides
    return {
        module: float((q.mT @ theirs[module]).square().sum()) / min(q.shape[1], theirs[module].shape[1])
        for module, q in ours.items()
        if module in theirs
    }
