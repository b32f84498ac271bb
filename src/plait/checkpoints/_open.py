"""From what a user calls a model to a checkpoint: folder, file, URL, Hub id or dictionary."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from plait.checkpoints._adapter_config import METADATA
from plait.checkpoints._adapter_keys import is_adapter_names
from plait.checkpoints._base import Checkpoint, LazyTensor
from plait.checkpoints._memory import tensors_of
from plait.checkpoints._ranges import LocalFile
from plait.checkpoints._remote_path import AnyPath, RemotePath
from plait.checkpoints._safetensors import SafetensorsFile
from plait.checkpoints._torch_files import load_torch_file
from plait.checkpoints._urls import is_url, local_path
from plait.errors import CheckpointError, MissingModelError, QuantizedCheckpointError, UnsafeFileError, shorten

__all__ = ["WEIGHT_SUFFIXES", "open_checkpoint"]

TORCH_SUFFIXES = (".bin", ".pt", ".pth")
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
_SINGLE = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
#: adapters, where a folder holds no model
_ADAPTERS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
_HUB_ID = re.compile(r"(?:hf://)?(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")
_NOT_MODELS = ("optimizer", "scheduler", "training_args", "rng_state", "adapter_model", "consolidated")


def open_checkpoint(reference: str | Path | Mapping[str, Tensor], *, relative_to: Path | None = None) -> Checkpoint:
    """Open a model by reading headers only.

    Args:
        reference: a folder, a weight file, the URL of one (`s3://…`, `https://…`: read by ranges, never copied), a Hub
            id (`org/name`, `org/name@revision`: downloaded into the Hub's cache; `hf://org/name`: read by ranges where
            the cache lacks it) or a state dict.
        relative_to: the folder that relative paths start from; the current one by default.

    Raises:
        MissingModelError, CheckpointError, UnsafeFileError, QuantizedCheckpointError: see `plait.errors`.
    """
    if isinstance(reference, Mapping):
        return Checkpoint("memory", tensors_of(reference, "memory"))
    text = str(reference)
    looked = ""
    if is_url(text) and not text.startswith("hf://"):
        from plait.checkpoints._remote import open_remote

        return open_remote(text)
    if not text.startswith("hf://"):
        try:
            path = local_path(text).expanduser()
            path = path if path.is_absolute() or relative_to is None else relative_to / path
            path.exists()
        except (OSError, RuntimeError, ValueError) as error:
            raise MissingModelError(f"{text[:80]!r} cannot be a model's path: {error}.") from None
        looked = f" (looked at {path})"
        if path.is_dir():
            return _open_folder(path, text)
        if path.is_file():
            return _open_file(path, text)
    found = _HUB_ID.fullmatch(text)
    if found is None:
        raise MissingModelError(f"there is no model at {text}: neither a folder nor a file{looked}.")
    return _open_hub(found.group(1), found.group(2), text)


def _open_hub(repository: str, revision: str | None, text: str) -> Checkpoint:
    from plait.checkpoints._hub import cached, fetch
    from plait.checkpoints._remote import open_streamed

    if text.startswith("hf://") and cached(repository, revision) is None:
        return open_streamed(repository, revision, text)
    folder, commit = fetch(repository, revision, text)
    checkpoint = _open_folder(folder, text)
    checkpoint.hub_id, checkpoint.revision = repository, commit
    return checkpoint


def _open_file(path: AnyPath, label: str) -> Checkpoint:
    tensors = _read_file(path)
    beside = path.parent / ADAPTER_CONFIG
    files, adapter = [path], None
    if is_adapter_names(tensors):
        adapter = _read_json(beside) if beside.is_file() else _own_config(path)
        files += [beside] if beside.is_file() else []
    return Checkpoint(label, tensors, stamp=_stamp(files), opened=_states(files), adapter=adapter)


def _read_file(path: AnyPath) -> dict[str, LazyTensor]:
    if isinstance(path, RemotePath):
        from plait.checkpoints._remote import read_remote

        return read_remote(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(LocalFile(path)).tensors
    if path.suffix in TORCH_SUFFIXES:
        return load_torch_file(path)
    if path.suffix == ".gguf":
        raise QuantizedCheckpointError(
            f"{path} is a GGUF file, which plait does not read yet; use the original safetensors model."
        )
    raise CheckpointError(f"{path} is no weight file that plait knows ({', '.join(WEIGHT_SUFFIXES)}).")


def _open_folder(folder: AnyPath, label: str) -> Checkpoint:
    config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    _refuse_quantized(config, folder)
    files, weight_map = _weight_files(folder)
    tensors: dict[str, LazyTensor] = {}
    for file, found in zip(files, _read_all(files), strict=True):
        for name, tensor in found.items():
            if name in tensors:
                raise CheckpointError(f"tensor {name!r} stands in two files: {tensors[name].source} and {file}.")
            tensors[name] = tensor
    if weight_map is not None:
        _check_index(weight_map, tensors, folder)
        tensors = {name: tensors[name] for name in weight_map}
    if not tensors:
        raise CheckpointError(f"{folder} holds no tensors.")
    _refuse_packed(tensors, folder)
    extra = [folder / "config.json"] if config is not None else []
    adapter = None
    if is_adapter_names(tensors) or (files and files[0].name.startswith("adapter_model.")):
        beside = folder / ADAPTER_CONFIG
        adapter, config = (_read_json(beside) if beside.is_file() else _own_config(files[0])), None
        extra = [beside] if beside.is_file() else []
    every = [*files, *extra]
    stamp, opened = _stamp(every), _states(every)
    return Checkpoint(label, tensors, config=config, folder=folder, stamp=stamp, opened=opened, adapter=adapter)


def _own_config(path: AnyPath) -> dict[str, Any]:
    """What an adapter file says about itself in its metadata."""
    if path.suffix != ".safetensors":
        return {}
    if isinstance(path, RemotePath):
        from plait.checkpoints._remote_file import RemoteFile

        metadata = SafetensorsFile(RemoteFile(path)).metadata
    else:
        metadata = SafetensorsFile(LocalFile(path)).metadata
    return {METADATA: metadata[METADATA]} if METADATA in metadata else {}


def _read_all(files: Sequence[AnyPath]) -> list[dict[str, LazyTensor]]:
    """Read the headers of all files; of remote ones several at a time."""
    if files and isinstance(files[0], RemotePath):
        from plait.checkpoints._remote_file import fetchers

        return list(fetchers().map(_read_file, files))
    return [_read_file(file) for file in files]


def _weight_files(folder: AnyPath) -> tuple[list[AnyPath], dict[str, str] | None]:
    indices: list[Any] = sorted(p for p in folder.glob("*.index.json") if ".safetensors" in p.name or ".bin" in p.name)
    singles: list[Any] = [folder / name for name in _SINGLE if (folder / name).is_file()]
    safe = [p for p in indices if ".safetensors" in p.name]
    if not safe and any(p.suffix == ".safetensors" for p in singles):
        indices = indices[:0]
    index = safe[0] if safe else indices[0] if indices else None
    if len(safe) > 1:
        raise CheckpointError(
            f"{folder} holds several models: {', '.join(p.name for p in safe)}. Name a folder of one."
        )
    if index is not None:
        content = _read_json(index).get("weight_map")
        if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
            raise CheckpointError(f"{index} has no weight_map.")
        rivals = [
            p.name for p in singles if p.name not in content.values() and (p.suffix == ".safetensors") == bool(safe)
        ]
        if rivals:
            raise CheckpointError(
                f"{folder} holds two models: the shards of {index.name} and {rivals[0]}. Remove the one that is stale."
            )
        return [_inside(folder, name, index) for name in dict.fromkeys(content.values())], content
    if singles:
        return singles[:1], None
    adapters: list[Any] = [folder / name for name in _ADAPTERS if (folder / name).is_file()]
    if adapters:
        return adapters[:1], None
    others: list[Any] = sorted(
        p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES and not p.name.startswith(_NOT_MODELS)
    )
    preferred = [p for p in others if p.suffix == ".safetensors"] or others
    if len(preferred) == 1:
        return preferred, None
    if not preferred:
        adapter = " It holds an adapter's configuration without its weights." if list(folder.glob("adapter_*")) else ""
        raise MissingModelError(
            f"{folder} holds no weights (model.safetensors, shards with an index, .bin, or an adapter).{adapter}"
        )
    names = ", ".join(p.name for p in preferred[:4])
    raise CheckpointError(
        f"{folder} holds several weight files without an index ({names}); name one of the files instead."
    )


def _inside(folder: AnyPath, name: str, index: AnyPath) -> AnyPath:
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise UnsafeFileError(f"{index} points outside its folder: {name!r}. Do not use this model.")
    path = folder / name
    if len(os.fsencode(name)) > 255 or not path.is_file():
        raise MissingModelError(f"the shard {name} that {index} names is missing. Download it again.")
    return path


def _check_index(weight_map: Mapping[str, str], tensors: Mapping[str, LazyTensor], folder: AnyPath) -> None:
    absent = [f"{name} (should be in {file})" for name, file in weight_map.items() if name not in tensors]
    if absent:
        raise CheckpointError(f"the index of {folder} names tensors that its shards lack:\n{shorten(absent)}")
    unlisted = [f"{name} (in {tensors[name].source})" for name in tensors if name not in weight_map]
    if unlisted:
        raise CheckpointError(f"the shards of {folder} hold tensors that its index does not name:\n{shorten(unlisted)}")


def _refuse_quantized(config: Mapping[str, Any] | None, folder: AnyPath) -> None:
    quantization = (config or {}).get("quantization_config")
    if quantization:
        kind = quantization.get("quant_method", "quantised") if isinstance(quantization, Mapping) else "quantised"
        raise QuantizedCheckpointError(
            f"{folder} is a {kind} model (quantization_config in config.json): its stored numbers mean nothing without "
            "their scales. Use the original 16-bit checkpoint, or dequantise it with the library that made it."
        )


def _refuse_packed(tensors: Mapping[str, LazyTensor], folder: AnyPath) -> None:
    marks = (".qweight", ".qzeros", ".SCB", ".quant_map", ".absmax", ".weight_scale", ".weight_scale_inv", "_blocks")
    for name in tensors:
        if name.endswith(marks):
            raise QuantizedCheckpointError(
                f"{folder} is quantised: tensor {name!r} in {tensors[name].source} belongs to packed weights. Use the "
                "original 16-bit checkpoint, or dequantise it with the library that made it."
            )


def _read_json(path: AnyPath) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return content


def _states(files: Sequence[AnyPath]) -> dict[Path, os.stat_result]:
    """The files of this machine, as they are now."""
    return {file: file.stat() for file in files if not isinstance(file, RemotePath)}


def _stamp(files: Sequence[AnyPath]) -> str:
    """What tells that an input changed between two runs: sizes of its files, and their times or tags.

    The time of the last change of any kind is one of them, since copying tools set the time of modification back.
    """
    facts: list[tuple[Any, ...]] = []
    for file in files:
        if isinstance(file, RemotePath):
            facts.append((file.name, *file.facts()))
        else:
            state = file.stat()
            facts.append((file.name, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return json.dumps(sorted(facts))
