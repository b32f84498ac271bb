"""PyTorch files (.bin, .pt, .pth): weights only, memory-mapped, never a plain unpickle."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.checkpoints._base import LazyTensor
from plait.checkpoints._memory import tensors_of
from plait.errors import CheckpointError, MissingModelError, UnsafeFileError

__all__ = ["load_torch_file"]

_NESTED = ("state_dict", "model_state_dict", "model", "module")


def load_torch_file(path: Path) -> dict[str, LazyTensor]:
    """Map the tensors of one file.

    Raises:
        UnsafeFileError: if the pickle would run code.
        CheckpointError: if the file is damaged, of the old format without mapping, or no state dict.
    """
    if not path.is_file():
        raise MissingModelError(f"there is no file {path}.")
    if not zipfile.is_zipfile(path):
        _refuse_unzipped(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"(?:function|class|global) (\S+)", str(error))
        named = f" ({found.group(1).rstrip('.')})" if found else ""
        raise UnsafeFileError(
            f"{path} holds more than tensors{named} and would run code when opened; it was not opened. "
            "Ask for a safetensors version, or convert it on a machine you can throw away."
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read ({str(error).splitlines()[0]}); download it again.") from None
    return tensors_of(_state_dict(content, path), str(path))


def _refuse_unzipped(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(2)
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{path} is in PyTorch's format of before version 1.6, which cannot be memory-mapped. Rewrite it once with "
            "torch.save(torch.load(path, weights_only=True), path), or save it as safetensors."
        )
    raise CheckpointError(f"{path} is not a PyTorch file: it was cut short or is something else. Download it again.")


def _state_dict(content: Any, path: Path) -> Mapping[str, Tensor]:
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path} holds entries that are not tensors: {', '.join(others[:5])}.")
    unnamed = [name for name in content if not isinstance(name, str)]
    if unnamed:
        raise CheckpointError(f"{path} names tensors by something other than words: {unnamed[0]!r}.")
    return dict(content)
