"""Totals of finished survey rounds, kept beside a growing output, so that a killed run does not count again."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.engine._hashes import bytes_of
from plait.engine._journal import sealed, unsealed

__all__ = ["FactStore", "decode", "encode"]


def encode(value: Any) -> Any:
    """Turn a summary into plain data: numbers, words, tensors and dataclasses of them.

    Raises:
        TypeError: for anything else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, (list, tuple)):
        items: Sequence[Any] = value
        return {"items": [encode(item) for item in items], "tuple": isinstance(value, tuple)}
    if isinstance(value, dict):
        return {"pairs": [[encode(k), encode(v)] for k, v in value.items()]}
    if isinstance(value, Tensor):
        packed = zlib.compress(bytes_of(value.cpu().reshape(-1)), level=1)  # counts are zero nearly everywhere
        return {
            "packed": base64.b64encode(packed).decode(),
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": [type(value).__module__, type(value).__qualname__], "fields": fields}
    raise TypeError(f"a {type(value).__name__} cannot be kept")


def decode(value: Any) -> Any:
    """Turn plain data back into the summary; only dataclasses that are loaded already are made."""
    if not isinstance(value, dict):
        return value
    if "items" in value:
        items = [decode(item) for item in value["items"]]
        return tuple(items) if value["tuple"] else items
    if "pairs" in value:
        return {decode(k): decode(v) for k, v in value["pairs"]}
    if "packed" in value:
        dtype, unpacked = getattr(torch, value["dtype"]), zlib.decompress(base64.b64decode(value["packed"]))
        flat = torch.frombuffer(bytearray(unpacked), dtype=torch.uint8).view(dtype)
        return flat.reshape(value["shape"])
    module, name = value["class"]
    cls = getattr(sys.modules[module], name)
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{name} is no summary")
    return cls(**{key: decode(field) for key, field in value["fields"].items()})


class FactStore:
    """Files of one growing output, one per finished round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, name: str) -> str:
        """Read a file of totals.

        Raises:
            OSError: if there is none.
        """
        return (self.folder / name).read_text(encoding="utf-8")

    def save(self, name: str, text: str) -> None:
        """Write a file of totals, whole or not at all."""
        part = (self.folder / name).with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.folder / name)

    def find(self, plan: int, step: int, number: int) -> Any:
        """Return the totals of a round that an earlier run has finished, or None."""
        try:
            return decode(unsealed(self.load(f"facts-{plan}-{step}-{number}.json")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error):
            return None  # absent, cut short or altered: count again

    def keep(self, plan: int, step: int, number: int, total: Any) -> None:
        """Write the totals of a finished round."""
        try:
            self.save(f"facts-{plan}-{step}-{number}.json", sealed(json.dumps(encode(total))))
        except (OSError, TypeError):
            return  # an aid, not a need: the next run counts again
