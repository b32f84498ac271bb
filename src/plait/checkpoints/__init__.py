"""Models on disk as lazy tensors, and the writer of new ones."""

from plait.checkpoints._adapted import adapted, changes_alone
from plait.checkpoints._adapter import Adapter, Module, read_adapter
from plait.checkpoints._adapter_tensors import DifferenceTensor, LowRankTensor, ZeroTensor
from plait.checkpoints._base import Checkpoint, LazyTensor
from plait.checkpoints._dtypes import RECIPE_DTYPES, is_float, parse_dtype, promote, safetensors_name, short
from plait.checkpoints._layout import Entry, Layout, Shard
from plait.checkpoints._memory import MemoryTensor
from plait.checkpoints._open import open_checkpoint
from plait.checkpoints._remote_path import AnyPath, RemotePath
from plait.checkpoints._sidecar import carried_files, is_tokenizer_file, output_config
from plait.checkpoints._urls import is_url, local_path

__all__ = [
    "RECIPE_DTYPES",
    "Adapter",
    "AnyPath",
    "Checkpoint",
    "DifferenceTensor",
    "Entry",
    "Layout",
    "LazyTensor",
    "LowRankTensor",
    "MemoryTensor",
    "Module",
    "RemotePath",
    "Shard",
    "ZeroTensor",
    "adapted",
    "carried_files",
    "changes_alone",
    "is_float",
    "is_tokenizer_file",
    "is_url",
    "local_path",
    "open_checkpoint",
    "output_config",
    "parse_dtype",
    "promote",
    "read_adapter",
    "safetensors_name",
    "short",
]
