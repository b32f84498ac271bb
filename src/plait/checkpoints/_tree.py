"""Folders that hold several models: diffusers pipelines (model_index.json), sentence-transformers (modules.json)."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

from plait.checkpoints._remote_path import AnyPath
from plait.errors import CheckpointError, UnsafeFileError

__all__ = ["PIPELINE", "SENTENCE", "component_files", "component_folders", "holds_weights"]

PIPELINE, SENTENCE = "model_index.json", "modules.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data", ".ot", ".gguf")


def component_folders(folder: AnyPath) -> list[str]:
    """Folders of the parts, relative to the whole, in the order of its index; none for a folder of one model.

    Raises:
        CheckpointError: for an index that cannot be read.
        UnsafeFileError: for one that points elsewhere.
    """
    if (folder / PIPELINE).is_file():
        index = _json(folder / PIPELINE)
        if not isinstance(index, dict):
            raise CheckpointError(f"{folder / PIPELINE} is not a JSON object.")
        listed = [
            name
            for name, value in index.items()
            if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and value[0] is not None
        ]
    elif (folder / SENTENCE).is_file():
        index = _json(folder / SENTENCE)
        modules = [m for m in index if isinstance(m, dict)] if isinstance(index, list) else []
        listed = [str(m["path"]) for m in modules if m.get("path")]
    else:
        return []
    for name in listed:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts or "\\" in name or "\0" in name:
            raise UnsafeFileError(f"{folder} names a part outside itself: {name!r}. Do not use this model.")
    return [name.strip("/") for name in dict.fromkeys(listed) if (folder / name).is_dir()]


def holds_weights(folder: AnyPath) -> bool:
    """Whether a part has tensors of its own: tokenizers, schedulers and poolings have none."""
    return any(p.suffix in (".safetensors", ".bin", ".pt", ".pth") for p in folder.iterdir() if p.is_file())


def component_files(folder: AnyPath) -> list[PurePath]:
    """The small files of all parts, and the index, relative to the whole."""
    parts = component_folders(folder)
    found = [PurePath(name) for name in (PIPELINE, SENTENCE) if parts and (folder / name).is_file()]
    for name in parts:
        for path in (folder / name).iterdir():
            small = not path.name.endswith((*_WEIGHTS, ".index.json")) and not path.name.startswith(".")
            if path.is_file() and small:
                found.append(PurePath(name) / path.name)
    return found


def _json(path: AnyPath) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}.") from None
