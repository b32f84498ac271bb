"""One exception class per cause; each message names the tensor, the file, the rule and the remedy.

`exit_code` is what the command line returns: 2 when the request itself is wrong (recipe, options), 1 when a file,
a tensor or the machine is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AdapterError",
    "CheckpointError",
    "ClusterError",
    "DiskSpaceError",
    "IncompatibleModelsError",
    "InterruptedRunError",
    "MemoryBudgetError",
    "MissingExtraError",
    "MissingModelError",
    "NonFiniteError",
    "OutputError",
    "PlaitError",
    "QuantizedCheckpointError",
    "ReadError",
    "RecipeError",
    "ReproductionError",
    "TerminatedRunError",
    "UnknownMethodError",
    "UnreachableError",
    "UnsafeFileError",
    "shorten",
    "suggest",
]


class PlaitError(Exception):
    """Root of every error that plait raises on purpose."""

    exit_code = 1


class RecipeError(PlaitError):
    """A recipe, an option or a parameter that cannot be used as written."""

    exit_code = 2


class UnknownMethodError(RecipeError):
    """A method name that no installed package provides."""


class MissingModelError(PlaitError):
    """A model that is not where the recipe says."""


class CheckpointError(PlaitError):
    """A checkpoint whose files are incomplete, inconsistent or unreadable."""


class ReadError(CheckpointError):
    """A file that the system cannot read now, though nothing is known to be wrong with it."""


class UnsafeFileError(CheckpointError):
    """A file that would run code or reach outside its folder when opened."""


class UnreachableError(CheckpointError):
    """Remote storage that does not answer, however often it is asked; what is finished is kept."""


class QuantizedCheckpointError(CheckpointError):
    """A checkpoint whose weights are quantised and mean nothing without their scales."""


class AdapterError(CheckpointError):
    """An adapter whose tensors cannot be read as a change of the base, or that does not fit it."""


class MissingExtraError(PlaitError):
    """A library that only some uses need, and that is not installed."""


class IncompatibleModelsError(PlaitError):
    """Models whose tensors cannot be aligned: names, shapes or kinds differ."""


class NonFiniteError(PlaitError):
    """A NaN or an infinity in an input, or one that the merge would write."""


class OutputError(PlaitError):
    """An output that would overwrite something, or that is being written by another process."""


class ClusterError(PlaitError):
    """A cluster that cannot be joined, or that lost a piece of work too often; what is finished is kept."""


class DiskSpaceError(PlaitError):
    """Too little free space for what the plan would write."""


class MemoryBudgetError(PlaitError):
    """A memory budget too small for the largest piece of work that cannot be divided."""


class ReproductionError(PlaitError):
    """A rebuilt model that differs from the one it should reproduce."""


class InterruptedRunError(PlaitError):
    """A run that the user stopped; what is finished is kept."""

    exit_code = 130


class TerminatedRunError(InterruptedRunError):
    """A run that the system asked to stop; what is finished is kept."""

    exit_code = 143


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def shorten(items: Iterable[str], limit: int = 20) -> str:
    """Join items one to a line, naming at most `limit` and counting the rest."""
    listed = list(items)
    lines = [f"  - {item}" for item in listed[:limit]]
    if len(listed) > limit:
        lines.append(f"  … and {len(listed) - limit} more")
    return "\n".join(lines)
