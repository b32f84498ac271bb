"""The files beside the weights: config, tokenizer, templates, processors."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch

from plait.checkpoints._dtypes import short
from plait.checkpoints._remote_path import AnyPath
from plait.checkpoints._tree import component_files

__all__ = ["carried_files", "is_tokenizer_file", "output_config"]

_CARRIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "generation_config.json",
    "*processor_config.json",
    "processor_config.json",
    "feature_extractor*.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*.py",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)


_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "chat_template", "additional_chat")


def is_tokenizer_file(path: PurePath) -> bool:
    """Tell whether a carried file belongs to the tokenizer."""
    return str(path).startswith(_TOKENIZER) or path.suffix in (".model", ".tiktoken")


def carried_files(folder: AnyPath | None) -> list[PurePath]:
    """Files of a model folder that belong to the merged model too, relative to the folder."""
    if folder is None:
        return []
    found: list[Any] = [
        p for p in folder.iterdir() if p.is_file() and any(fnmatch.fnmatch(p.name, mask) for mask in _CARRIED)
    ]
    own = component_files(folder)
    if (folder / "modules.json").is_file():  # sentence-transformers keeps small modules in numbered folders
        found += [p for p in folder.glob("[0-9]*_*/config.json") if p.is_file()]
    if (folder / "additional_chat_templates").is_dir():
        found += [p for p in (folder / "additional_chat_templates").glob("*.jinja") if p.is_file()]
    return sorted({*(p.relative_to(folder) for p in found), *own})


def output_config(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return the config with its dtype, in whichever spelling it uses, set to that of the weights."""
    changed = dict(config)
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    for key in keys:
        changed[key] = short(dtype)
    for section, content in config.items():
        if isinstance(content, Mapping) and any(key in content for key in ("dtype", "torch_dtype")):
            changed[section] = output_config(content, dtype)
    return changed
