"""TIES without its first step, for the methods that bring a sparsifier of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ELECT_AND_MERGE"]

#: values of `ties` that leave sign election per entry and the merge of those who agree, a cancelled vote counting as +
ELECT_AND_MERGE: Mapping[str, Any] = {"density": 1.0, "scope": "tensor", "zero_sign": "positive", "rescale": "none"}
