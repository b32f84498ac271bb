"""Factorisations kept on disk by the content of the matrix, so that no later run repeats them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from plait.engine._hashes import bytes_of
from plait.errors import DiskSpaceError
from plait.tensors.factors import Factors, factor

__all__ = ["FactorCache"]


class FactorCache:
    """Factors matrices, and finds those factors again that it has computed before.

    What is kept are the singular values and the vectors of the shorter side, in float64 (and those of the longer side
    where they do not follow from the matrix): about as much as the matrix. The key is the matrix's bytes, shape and
    dtype and the version of torch: a result from the cache has the bits it would be computed with.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = 0

    def __call__(self, matrix: Tensor) -> Factors:
        """Return the factors."""
        facts = f"factors {tuple(matrix.shape)} {matrix.dtype} {matrix.device.type} {torch.__version__}"
        state = xxhash.xxh3_128(facts.encode())
        state.update(bytes_of(matrix.detach().cpu().reshape(-1)))
        key = state.hexdigest()
        path = self.folder / key[:2] / f"{key}.safetensors"
        if path.is_file():
            try:
                held = load_file(path)
                self.found += 1
                return Factors(matrix, **{part: value.to(matrix.device) for part, value in held.items()})
            except (SafetensorError, TypeError):
                path.unlink(missing_ok=True)  # cut short by a full disk: compute it again
        result = factor(matrix)
        self._keep(path, result)
        return result

    def _keep(self, path: Path, result: Factors) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
            os.close(handle)
            try:
                parts = {"s": result.s, "short": result.short, "long": result.long}
                save_file({k: v.contiguous().cpu() for k, v in parts.items() if v is not None}, name)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except (OSError, SafetensorError) as error:
            raise DiskSpaceError(
                f"the cache of factorisations {self.folder} cannot be written ({error}): make room, choose another, or "
                "leave it out."
            ) from None
