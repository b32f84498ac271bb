"""Models behind URLs: headers and tensors by ranged requests, nothing copied to this machine."""

from __future__ import annotations

from plait.checkpoints._base import Checkpoint, LazyTensor
from plait.checkpoints._open import TORCH_SUFFIXES, WEIGHT_SUFFIXES, _open_file, _open_folder, _stamp
from plait.checkpoints._remote_file import RemoteFile
from plait.checkpoints._remote_path import RemotePath
from plait.checkpoints._safetensors import SafetensorsFile
from plait.checkpoints._store import Store
from plait.errors import CheckpointError, MissingModelError

__all__ = ["UNFINISHED", "open_remote", "open_streamed", "read_remote"]

#: the object that says that a remote folder is no model yet
UNFINISHED = ".plait-unfinished"


def open_remote(url: str) -> Checkpoint:
    """Open a model behind any URL that fsspec knows.

    Raises:
        MissingExtraError: if the library for this kind of URL is not installed.
        MissingModelError, CheckpointError: as for a model on disk, and for storage that refuses or does not answer.
    """
    store = Store(url)
    return _open(RemotePath(store, store.root), url)


def open_streamed(repository: str, revision: str | None, text: str) -> Checkpoint:
    """Open a model of the Hub by ranges, at the commit that the revision means now."""
    from huggingface_hub import HfFileSystem

    from plait.checkpoints._hub import resolve

    commit = resolve(repository, revision, text)
    root = f"{repository}@{commit}"
    store = Store(f"hf://{root}", fs=HfFileSystem(), root=root)
    checkpoint = _open(RemotePath(store, root), text)
    checkpoint.hub_id, checkpoint.revision = repository, commit
    return checkpoint


def _open(path: RemotePath, label: str) -> Checkpoint:
    if path.suffix in WEIGHT_SUFFIXES or path.suffix == ".gguf":
        if path.suffix == ".safetensors" and not path.is_file():
            raise MissingModelError(f"there is no file {path}. Check the spelling and the bucket.")
        checkpoint = _open_file(path, label)
        files = [path]
    else:
        if not path.is_dir():
            raise MissingModelError(f"there is no model at {path}: nothing lies there. Check the spelling.")
        if (path / UNFINISHED).is_file():
            raise CheckpointError(
                f"{path} is being written or was left unfinished by a killed `plait merge`; run that command again."
            )
        checkpoint = _open_folder(path, label)
        files = _files_of(path, checkpoint)
    checkpoint.restamp = lambda: _restamp(files)
    return checkpoint


def _files_of(folder: RemotePath, checkpoint: Checkpoint) -> list[RemotePath]:
    places = dict.fromkeys(tensor.source for tensor in checkpoint.tensors.values())
    names = [*places, *([str(folder / "config.json")] if checkpoint.config is not None else [])]
    return [folder / name.removeprefix(f"{folder}/") for name in names]


def _restamp(files: list[RemotePath]) -> str:
    store = files[0].store
    store.refresh()
    return _stamp(files)


def read_remote(path: RemotePath) -> dict[str, LazyTensor]:
    """Read the header of one remote file.

    Raises:
        CheckpointError: for PyTorch files, which are pickles in an archive and cannot be read by ranges.
    """
    if path.suffix == ".safetensors":
        return SafetensorsFile(RemoteFile(path)).tensors
    if path.suffix in TORCH_SUFFIXES:
        raise CheckpointError(
            f"{path} is a PyTorch file: a pickle, which is not read over the network. Use a safetensors version of the "
            "model, or download it and name the local folder."
        )
    raise CheckpointError(f"{path} is no weight file that plait reads over the network: it must be .safetensors.")
