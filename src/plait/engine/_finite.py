"""NaN and infinity: found in whole blocks, named with their tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.checkpoints import LazyTensor
from plait.engine._plan import Job
from plait.errors import NonFiniteError

__all__ = ["check_finite", "check_result", "finite"]


def finite(values: Tensor) -> bool:
    """Whether all values are finite."""
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_finite(values: Tensor, tensor: LazyTensor, start: int) -> None:
    """Look through elements of an input from `start` on.

    Raises:
        NonFiniteError: naming the tensor and the first place.
    """
    if finite(values):
        return
    bad = ~torch.isfinite(values)
    index = start + int(bad.to(torch.uint8).argmax())
    kind = "NaN" if bool(torch.isnan(values).any()) else "infinity"
    raise NonFiniteError(
        f"tensor {tensor.name!r} in {tensor.source} holds {kind}: {int(bad.sum())} of the values read so far, the "
        f"first at flat index {index}. The model is damaged; use another, or set allow_nonfinite: true to merge it "
        "as it is."
    )


def check_result(result: Tensor, merged: Tensor, job: Job) -> None:
    """Look through a result, and through what it was before it was rounded.

    Raises:
        NonFiniteError: saying which of the two is broken.
    """
    if finite(result):
        return
    if finite(merged):
        raise NonFiniteError(
            f"tensor {job.name!r} does not fit into {job.entry.dtype}: its values reach "
            f"{float(merged.abs().max()):.4g}. Choose dtype: bfloat16 or float32."
        )
    raise NonFiniteError(
        f"merging tensor {job.name!r} gave NaN or infinity although its inputs are finite; check the weights and "
        "parameters, or set allow_nonfinite: true."
    )
