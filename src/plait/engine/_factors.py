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
from plait.tensors.spectral import SVD, svd

__all__ = ["FactorCache"]


class FactorCache:
    """Computes thin SVDs, and finds those again that it has computed before.

    A factorisation is as large as twice its matrix. The key is the matrix's bytes, shape and dtype and the version of
    torch: a result from the cache has the bits it would be computed with.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = 0

    def __call__(self, matrix: Tensor) -> SVD:
        """Return the thin SVD."""
        facts = f"svd {tuple(matrix.shape)} {matrix.dtype} {matrix.device.type} {torch.__version__}"
        state = xxhash.xxh3_128(facts.encode())
        state.update(bytes_of(matrix.detach().cpu().reshape(-1)))
        key = state.hexdigest()
        path = self.folder / key[:2] / f"{key}.safetensors"
        if path.is_file():
            try:
                held = load_file(path)
                self.found += 1
                return SVD(*(held[part].to(matrix.device) for part in SVD._fields))
            except (SafetensorError, KeyError):
                path.unlink(missing_ok=True)  # cut short by a full disk: compute it again
        result = svd(matrix)
        self._keep(path, result)
        return result

    def _keep(self, path: Path, result: SVD) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
            os.close(handle)
            try:
                save_file({k: v.contiguous().cpu() for k, v in result._asdict().items()}, name)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except (OSError, SafetensorError) as error:
            raise DiskSpaceError(
                f"the cache of factorisations {self.folder} cannot be written ({error}): make room, choose another, or "
                "leave it out."
            ) from None
