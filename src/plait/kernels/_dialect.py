"""How torch computes on a device what more than one rounding of can be right: found by asking it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from plait.kernels._graph import Untraceable

__all__ = ["Dialect", "dialect"]

_COUNT = 4096
_DIVISOR, _FACTOR = 3.1, 0.3


@dataclass(frozen=True)
class Dialect:
    """What a loop must do to round as torch does.

    Attributes:
        inverse: dividing by a number multiplies by its inverse, which is formed in float64 and rounded.
        fused_number: adding a multiple of a tensor by a number rounds once.
        fused_product: adding a product of two tensors rounds once.
        positive: of zeros with two signs the larger is the positive one.
    """

    inverse: bool
    fused_number: bool
    fused_product: bool
    positive: bool


def _agrees(found: Tensor, wanted: Tensor) -> bool:
    return torch.equal(found.cpu().view(torch.int32), wanted.view(torch.int32))


@cache
def dialect(device: torch.device) -> Dialect:
    """Ask torch on a device; every answer must be one of those known.

    Raises:
        Untraceable: if torch rounds there in a way that is not known here.
    """
    generator = torch.Generator().manual_seed(0)
    here = [torch.randn(_COUNT, generator=generator) for _ in range(3)]
    x, y, z = here
    there = [tensor.to(device) for tensor in here]

    def choose(what: str, found: Tensor, first: Tensor, second: Tensor) -> bool:
        if _agrees(found, first):
            return True
        if _agrees(found, second):
            return False
        raise Untraceable(f"{what} as torch computes it on {device}")

    # two roundings here, one by way of float64, in which the product of two float32 is exact
    factor = torch.tensor(_FACTOR)
    once_number = (x.double() + y.double() * factor.double()).float()
    once_product = (x.double() + y.double() * z.double()).float()
    zeros = [torch.tensor([a, b]).to(device) for a, b in ((0.0, -0.0), (-0.0, 0.0))]
    return Dialect(
        choose("division", there[0] / _DIVISOR, x * torch.tensor(1.0 / _DIVISOR), x / _DIVISOR),
        choose("add", torch.add(there[0], there[1], alpha=_FACTOR), once_number, x + y * factor),
        choose("addcmul", torch.addcmul(*there), once_product, x + y * z),
        not bool(torch.maximum(*zeros).cpu().signbit().any())
        and not bool(zeros[1].clamp_min(0.0).cpu().signbit().any()),
    )
