"""Inputs that can change while they are read."""

from __future__ import annotations

from plait.engine._plan import Plan
from plait.errors import CheckpointError

__all__ = ["check_unchanged"]


def check_unchanged(plan: Plan) -> None:
    """Look at the inputs once more before the output is put in place.

    Raises:
        CheckpointError: if one was replaced since its header was read: the output could mix two versions.
    """
    for checkpoint in plan.inputs.values():
        checkpoint.check_unchanged()
        if checkpoint.restamp is not None and checkpoint.restamp() != checkpoint.stamp:
            raise CheckpointError(
                f"{checkpoint.label} changed while it was read, so that the result could mix two versions of it; "
                "run the same command again."
            )
