"""Gradient descent on one tensor whose gradient is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["adam", "descend_rows", "momentum", "times_rows"]

#: rows that descend together: enough for an efficient product with C, few enough to take little memory
_ROWS = 512


def descend_rows(
    method: Callable[[Tensor, Callable[[Tensor], Tensor], int, float], Tensor],
    start: Float[Tensor, "m n"],
    times: Callable[[Tensor], Tensor],
    target: Float[Tensor, "m n"],
    steps: int,
    rate: float,
) -> Float[Tensor, "m n"]:
    """Descend on 2(M·C − D) from `start`, which is overwritten by the result.

    Rows do not see each other, so a few descend at a time, and the optimiser's state is that of a few rows. `times`
    multiplies a few rows by C.
    """
    for first in range(0, start.shape[0], _ROWS):
        rows = slice(first, first + _ROWS)
        wanted = target[rows]

        def slope(here: Tensor, wanted: Tensor = wanted) -> Tensor:
            return times(here).sub_(wanted).mul_(2.0)

        method(start[rows], slope, steps, rate)
    return start


def times_rows(times: Callable[[Tensor], Tensor], matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """M·C with the very bits that `descend_rows` sees in its first step.

    A descent whose gradient is 0 must see 0: Adam turns rounding of 1e-17 into steps of 1e-8.
    """
    return torch.cat([times(rows) for rows in matrix.split(_ROWS)])


def adam(
    start: Float[Tensor, "*n"], gradient: Callable[[Tensor], Tensor], steps: int, rate: float
) -> Float[Tensor, "*n"]:
    """Take `steps` of Adam (β = 0.9 and 0.999, ε = 1e-8, bias-corrected) from `start`, in its memory.

    A step moves an entry by at most about `rate`, whatever the size of the gradient: the distance is absolute.
    """
    here = start
    first, second = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        slope = gradient(here)
        first.lerp_(slope, 0.1)
        second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        denominator = slope.copy_(second).sqrt_().div_(math.sqrt(1.0 - 0.999**step)).add_(1e-8)
        here.addcdiv_(first, denominator, value=-rate / (1.0 - 0.9**step))
    return here


def momentum(
    start: Float[Tensor, "*n"], gradient: Callable[[Tensor], Tensor], steps: int, rate: float
) -> Float[Tensor, "*n"]:
    """Take `steps` of gradient descent with momentum 0.9 from `start`, in its memory."""
    here = start
    speed = torch.zeros_like(start)
    for _ in range(steps):
        speed.mul_(0.9).add_(gradient(here))
        here.add_(speed, alpha=-rate)
    return here
