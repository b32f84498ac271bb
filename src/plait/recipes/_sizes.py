"""Sizes as people write them: 5GB, 512MiB."""

from __future__ import annotations

import re

from plait.errors import RecipeError

__all__ = ["parse_size"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str | int, what: str) -> int:
    """Read a positive size in bytes: a number with an optional unit (KB, MB, GB, KiB, MiB, GiB…).

    Raises:
        RecipeError: if it cannot be read, or is not positive.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]i?)?b?\s*", str(text), re.IGNORECASE)
    if not found or not 0 < float(found.group(1)) < 1e15:
        raise RecipeError(f"{what} is {text!r}; write a size such as 512MiB or 5GB.")
    return max(1, int(float(found.group(1)) * _UNITS[(found.group(2) or "").lower()]))
