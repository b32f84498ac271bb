"""Gradient descent on one tensor whose gradient is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["adam", "momentum"]


def adam(
    start: Float[Tensor, "*n"], gradient: Callable[[Tensor], Tensor], steps: int, rate: float
) -> Float[Tensor, "*n"]:
    """Take `steps` of Adam (β = 0.9 and 0.999, ε = 1e-8, bias-corrected) from `start`.

    A step moves an entry by at most about `rate`, whatever the size of the gradient: the distance is absolute.
    """
    here = start.clone()
    first, second = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        slope = gradient(here)
        first.lerp_(slope, 0.1)
        second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        denominator = (second.sqrt() / math.sqrt(1.0 - 0.999**step)).add_(1e-8)
        here.addcdiv_(first, denominator, value=-rate / (1.0 - 0.9**step))
    return here


def momentum(
    start: Float[Tensor, "*n"], gradient: Callable[[Tensor], Tensor], steps: int, rate: float
) -> Float[Tensor, "*n"]:
    """Take `steps` of gradient descent with momentum 0.9 from `start`."""
    here = start.clone()
    speed = torch.zeros_like(start)
    for _ in range(steps):
        speed.mul_(0.9).add_(gradient(here))
        here.add_(speed, alpha=-rate)
    return here
