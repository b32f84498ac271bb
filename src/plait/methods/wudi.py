"""WUDI: descend on the interference that each task vector's own inputs would see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from plait.methods._contract import Group, Paper
from plait.methods._parameters import Doc, NonNegative, PositiveInt
from plait.methods._spectral import SpectralCombiner, squared_norms, summed, weighted_deltas
from plait.tensors.descent import adam, descend_rows, times_rows
from plait.tensors.spectral import normal_equations

__all__ = ["Wudi"]


@dataclass(frozen=True, kw_only=True)
class Wudi(SpectralCombiner):
    """Minimise the interference Σᵢ ‖(M − τᵢ) τᵢᵀ‖² / ‖τᵢ‖² over M by a few hundred steps of Adam from Σ τᵢ.

    The rows of τᵢ stand for the inputs of task i. The gradient is 2(M·C − D) with C = Σ τᵢᵀτᵢ/‖τᵢ‖² and
    D = Σ τᵢτᵢᵀτᵢ/‖τᵢ‖², so that a step costs one (m, n) × (n, n) product whatever the number of experts. A step moves
    an entry by at most `rate`: the update is absolute, and deltas of another size want another rate. Weights scale the
    deltas. The authors' vision code optimises attention and MLP matrices and leaves all else at the base
    (`others: base`, `embeddings: base`, `head: base`). `iwudi` and its kin are the closed forms.

    Paper: Cheng et al., "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task
    Vectors", ICML 2025, arXiv 2503.08099.
    """

    name: ClassVar[str] = "wudi"
    summary: ClassVar[str] = "gradient descent on the interference between task vectors, without data"
    formula: ClassVar[str] = "θ₀ + argmin_M Σᵢ ‖(M − τᵢ) τᵢᵀ‖² / ‖τᵢ‖², stopped early"
    paper: ClassVar[Paper | None] = Paper(
        "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors",
        "Cheng et al.",
        2025,
        "2503.08099",
        "nathanielyvo/WUDI-Merging",
    )
    identity: ClassVar[Any] = {}
    cost: ClassVar[Any] = "iterative"
    temporaries: ClassVar[tuple[float, float]] = (1.5, 0.0)
    grams: ClassVar[float] = 0.0
    squares: ClassVar[float] = 1.0

    steps: Annotated[PositiveInt, Doc("steps of Adam")] = 300
    rate: Annotated[NonNegative, Doc("learning rate: the most an entry moves in a step")] = 1e-5

    def update(self, group: Group) -> Tensor:
        """Build C and D once, then descend."""
        deltas = weighted_deltas(group)
        squares = squared_norms(deltas)
        c, d = normal_equations(deltas, deltas, squares)
        alone = [i for i, square in enumerate(squares) if square > 0]
        if len(alone) == 1:
            d = times_rows(lambda rows: rows @ c, deltas[alone[0]])  # a single expert is its own minimiser, exactly
        return descend_rows(adam, summed(deltas), lambda rows: rows @ c, d, self.steps, self.rate)
