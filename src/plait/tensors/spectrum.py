"""Rules that read off a spectrum how many of its directions carry signal."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LossRule", "RankRule", "effective_rank"]

LossRule = Literal["risk", "risk_without_cross", "loss_elbow", "loss_elbow_without_cross"]
"""The rules below that compare losses and so need more than a spectrum."""

RankRule = Literal[
    "all",
    "ratio",
    "participation_sqrt",
    "participation",
    "entropy",
    "stable_rank",
    "cumvar",
    "gavish_donoho",
    "gavish_donoho_loose",
    "risk",
    "risk_without_cross",
    "loss_elbow",
    "loss_elbow_without_cross",
]
"""How many of the n largest eigenvalues λ of a least-squares problem θC = D are used.

- `all`; `ratio`: ⌈ratio · n⌉.
- `participation_sqrt`: (Σ√λ)² / Σλ; `participation`: (Σλ)² / Σλ²; `stable_rank`: Σλ² / λ₁²;
  `entropy`: exp of the entropy of λ/Σλ; each rounded up.
- `cumvar`: the fewest that hold the share `level` of Σλ.
- `gavish_donoho`: √λ above the optimal hard threshold for their median (Gavish and Donoho 2014); `gavish_donoho_loose`:
  as the authors' code, whose value for the median of pure noise is too large, so that more is kept.
- `risk`: the number that minimises ‖θC − D‖² + ‖θ‖² over truncations; `risk_without_cross`: as the authors' code, which
  drops the cross term of the first norm.
- `loss_elbow`: the fewest that bring ‖θC − D‖² down to the share 1 − `level` of its value at the start;
  `loss_elbow_without_cross`: as the authors' code, of the same sum without its cross term.
"""


def effective_rank(
    values: Float[Tensor, "n"],  # noqa: F821
    rule: RankRule,
    level: float,
    aspect: float,
    ratio: float = 1.0,
) -> int:
    """Number of leading eigenvalues, between 1 and n, by a rule that needs nothing but the spectrum.

    Args:
        values: positive eigenvalues in descending order, squares of singular values.
        rule: one of the spectrum's own rules; the loss rules need more than a spectrum.
        level: share of the sum, for `cumvar`.
        aspect: shorter over longer side of the matrix, for `gavish_donoho`.
        ratio: share of n, for `ratio`.
    """
    total, squares = values.sum(), values.square().sum()
    match rule:
        case "ratio":
            count = int(values.numel() * ratio + 0.999)
        case "participation_sqrt":
            count = math.ceil(float(values.sqrt().sum() ** 2 / total))
        case "participation":
            count = math.ceil(float(total**2 / squares))
        case "stable_rank":
            count = math.ceil(float(squares / values[0] ** 2))
        case "entropy":
            share = values / total
            count = math.ceil(float(torch.exp(-(share * share.log()).sum())))
        case "cumvar":
            count = 1 + int(((values / total).cumsum(0) < level).sum())
        case "gavish_donoho" | "gavish_donoho_loose":
            roots = values.sqrt()
            factor = _hard_threshold(aspect) if rule == "gavish_donoho" else _loose_threshold(aspect)
            count = int((roots > factor * roots.median()).sum())
        case _:
            count = values.numel()
    return min(max(count, 1), values.numel())


def _hard_threshold(aspect: float) -> float:
    """Optimal hard threshold for singular values in units of their median: the paper's cubic fit, good to 2 %."""
    return ((0.56 * aspect - 0.95) * aspect + 1.82) * aspect + 1.43


def _loose_threshold(aspect: float) -> float:
    """The threshold for known noise divided by a stand-in for its median singular value."""
    root = aspect + 1.0 + math.sqrt(aspect * aspect + 14.0 * aspect + 1.0)
    middle = max(math.sqrt((1.0 - aspect) ** 2 + aspect), 1e-3) if aspect < 0.9999 else math.sqrt(2.0 + math.sqrt(3.0))
    return math.sqrt(2.0 * (aspect + 1.0) + 8.0 * aspect / root) / middle
