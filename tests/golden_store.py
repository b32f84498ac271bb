"""Where golden vectors come from: a folder of them, or the digests that the project carries.

The folder is named by the environment variable PLAIT_GOLDEN; set to nothing, it means "only what is carried". A clone
without one still has the small inputs and, for every golden, a digest: per tensor the norm of the update and its inner
products with a few dozen seeded random directions. Two updates whose digests agree to a tolerance agree themselves,
except with negligible probability.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
CARRIED = HERE / "data" / "golden"
DIGESTS = CARRIED / "digests.json"
PROJECTIONS = 32


def folder() -> Path | None:
    """The folder of golden vectors, if there is one."""
    named = os.environ.get("PLAIT_GOLDEN")
    if named is not None:
        return Path(named) if named else None
    shared = HERE.parent.parent / "shared" / "golden" / "public"
    return shared if shared.is_dir() else None


@cache
def digests() -> dict[str, Any]:
    """Name → description and digest, as carried."""
    return json.loads(DIGESTS.read_text()) if DIGESTS.is_file() else {}


def names() -> list[str]:
    """Every golden that is known: in the folder, or carried."""
    found = {p.stem for p in folder().glob("*.json")} if folder() else set()
    return sorted(found | set(digests()))


@cache
def load(name: str) -> dict[str, Tensor]:
    """Load an input, from the folder or from what is carried."""
    for place in (folder(), CARRIED):
        if place is not None and (place / f"{name}.safetensors").is_file():
            return load_file(place / f"{name}.safetensors")
    raise FileNotFoundError(name)


def meta(name: str) -> dict[str, Any] | None:
    """The description of a golden, or None where there is none."""
    place = folder()
    if place is not None:
        path = place / f"{name}.json"
        return {**json.loads(path.read_text()), "name": name} if path.is_file() else None
    return {**digests()[name]["meta"], "name": name} if name in digests() else None


def expected(name: str) -> dict[str, Tensor] | None:
    """The golden tensors, or None where only their digest is known."""
    place = folder()
    path = place / f"{name}.safetensors" if place is not None else None
    return load_file(path) if path is not None and path.is_file() else None


def directions(tensor: str, count: int, numel: int) -> Tensor:
    """Seeded random directions of unit variance for one tensor, (count, numel)."""
    key = int.from_bytes(hashlib.blake2b(tensor.encode(), digest_size=16).digest(), "little")
    bits = np.random.Philox(key=key).random_raw((count * numel + 63) // 64)
    signs = np.unpackbits(bits.view(np.uint8))[: count * numel].reshape(count, numel)
    return torch.from_numpy(signs.astype(np.float64) * 2 - 1)


def digest(updates: dict[str, Tensor]) -> dict[str, list[float]]:
    """Per tensor: the norm of the update, then its projections."""
    found = {}
    for name, update in updates.items():
        flat = update.double().reshape(-1)
        along = directions(name, PROJECTIONS, flat.numel()) @ flat
        found[name] = [float(f"{v:.9g}") for v in (float(flat.norm()), *along.tolist())]
    return found
