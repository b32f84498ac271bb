"""Adapters as results: merging, extracting, converting and writing low-rank changes."""

from plait.adapters._merge import merge_adapter
from plait.adapters._write import Piece, write_adapter

__all__ = ["Piece", "merge_adapter", "write_adapter"]
