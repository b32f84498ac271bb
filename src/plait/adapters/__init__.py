"""Adapters as results: merging, extracting, converting, packing and writing low-rank changes."""

from plait.adapters._basis import orthogonal_basis, overlap, start_adapter
from plait.adapters._convert import AdapterInfo, adapter_info, convert_adapter
from plait.adapters._extract import Extraction, Kept, extract_adapter
from plait.adapters._merge import AdapterResult, for_target, merge_adapter
from plait.adapters._reversible import pack_adapters, recover_adapter
from plait.adapters._sparse import (
    SparseChange,
    extract_sparse,
    fuse,
    load_sparse,
    merge_sparse,
    save_sparse,
    unfuse,
)
from plait.adapters._write import Piece, write_adapter

__all__ = [
    "AdapterInfo",
    "AdapterResult",
    "Extraction",
    "Kept",
    "Piece",
    "SparseChange",
    "adapter_info",
    "convert_adapter",
    "extract_adapter",
    "extract_sparse",
    "for_target",
    "fuse",
    "load_sparse",
    "merge_adapter",
    "merge_sparse",
    "orthogonal_basis",
    "overlap",
    "pack_adapters",
    "recover_adapter",
    "save_sparse",
    "start_adapter",
    "unfuse",
    "write_adapter",
]
