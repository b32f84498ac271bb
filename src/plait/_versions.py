"""Versions of what decides the bits of a result."""

from __future__ import annotations

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Return the versions of plait, torch and numpy."""
    import numpy
    import torch

    from plait import __version__

    return {"plait": __version__, "torch": torch.__version__, "numpy": numpy.__version__}
