"""Averages along one training run: SWA, EMA, LAWA and metric weights over checkpoints given from first to last."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from plait.errors import RecipeError
from plait.methods._contract import Combiner, Group, Paper, Subject
from plait.methods._parameters import Doc, Fraction, NonNegative, NonNegativeInt, PerExpert, PositiveInt, Real
from plait.tensors.lowrank import LowRank, concatenate

__all__ = ["COMPOSITIONS", "Ema", "Lawa", "Mwa", "Swa"]

#: the plain mean of a run's checkpoints, by its descriptive name
COMPOSITIONS = {"checkpoint_average": ("swa",)}


@dataclass(frozen=True, kw_only=True)
class _Trajectory(Combiner):
    """θ = Σ cₖθₖ with coefficients that add up to 1 and depend on the order of the checkpoints."""

    needs_base: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False
    temporaries: ClassVar[tuple[float, float]] = (4.0, 0.0)

    def shares(self, count: int) -> tuple[float, ...]:
        """Return the coefficient of each checkpoint, first to last."""
        raise NotImplementedError

    def merge(self, group: Group) -> Tensor:
        """Sum in float64: a long run's checkpoints are close together, and float32 would lose their differences."""
        total = torch.zeros_like(group.experts[0], dtype=torch.float64)
        for expert, share in zip(group.experts, self.shares(group.count), strict=True):
            if share:
                total.add_(expert, alpha=share)
        return total.to(group.experts[0].dtype)

    def factored(self, subject: Subject) -> bool:
        """Sums of products are products of stacked factors."""
        del subject
        return True

    def merge_low_rank(self, group: Group) -> LowRank:
        """Concatenate the factors: the average of the products."""
        assert group.low_rank is not None
        return concatenate(group.low_rank, self.shares(group.count))


@dataclass(frozen=True, kw_only=True)
class Swa(_Trajectory):
    """Average the checkpoints of a run equally, from the `start`-th on, every `every`-th of them.

    θ = mean of θₖ, k = start, start + every, …, counted from 0. Stochastic weight averaging expects a constant or
    cyclic learning rate while the checkpoints were written; batch-norm statistics need a data pass afterwards. For
    chosen weights use `linear`.

    Paper: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018, arXiv
    1803.05407.
    """

    name: ClassVar[str] = "swa"
    summary: ClassVar[str] = "equal average of a run's checkpoints (stochastic weight averaging)"
    formula: ClassVar[str] = "mean of θₖ from the start-th checkpoint on"
    paper: ClassVar[Paper | None] = Paper(
        "Averaging Weights Leads to Wider Optima and Better Generalization",
        "Izmailov et al.",
        2018,
        "1803.05407",
        "timgaripov/swa",
    )

    start: Annotated[NonNegativeInt, Doc("number of early checkpoints that are left out")] = 0
    every: Annotated[PositiveInt, Doc("take every n-th checkpoint from the start on")] = 1

    def check(self, weights: tuple[float, ...]) -> None:
        """Refuse a start behind the last checkpoint."""
        if self.start >= len(weights):
            raise RecipeError(f"start is {self.start} in 'swa', but there are {len(weights)} checkpoints; lower it.")

    def shares(self, count: int) -> tuple[float, ...]:
        """Equal shares of the chosen checkpoints."""
        chosen = range(self.start, count, self.every)
        return tuple(1.0 / len(chosen) if k in chosen else 0.0 for k in range(count))


@dataclass(frozen=True, kw_only=True)
class Ema(_Trajectory):
    """Average the checkpoints of a run with exponentially fading memory.

    e₀ = θ₀, eₖ = decay · eₖ₋₁ + (1 − decay) · θₖ: the first checkpoint is copied, as in torch's AveragedModel, and so
    keeps the large share decayⁿ⁻¹ in a short sequence; `debias` starts from nothing instead and divides by what is
    missing (decay 1 then is the plain mean). Per step of training 0.999 to 0.9999 is usual; between saved checkpoints
    0.2 to 0.9.

    Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"; as in `torch.optim.swa_utils`.
    """

    name: ClassVar[str] = "ema"
    summary: ClassVar[str] = "exponential moving average over a run's checkpoints"
    formula: ClassVar[str] = "eₖ = decay · eₖ₋₁ + (1 − decay) · θₖ"
    paper: ClassVar[Paper | None] = Paper(
        "Acceleration of stochastic approximation by averaging", "Polyak & Juditsky", 1992
    )

    decay: Annotated[Fraction, Doc("share of the average that each further checkpoint leaves in place")] = 0.9
    debias: Annotated[bool, Doc("give the first checkpoint no more than its fading share")] = False

    def shares(self, count: int) -> tuple[float, ...]:
        """The recurrence written out."""
        faded = [self.decay ** (count - 1 - k) for k in range(count)]
        if self.debias:
            return tuple(value / math.fsum(faded) for value in faded)
        return (faded[0], *((1.0 - self.decay) * value for value in faded[1:]))


@dataclass(frozen=True, kw_only=True)
class Lawa(_Trajectory):
    """Average the latest `window` checkpoints of a run equally; of a shorter run, all.

    One result is one position of the sliding window, ending at the last expert. LAWA used the last 6 epochs; early
    weight averaging for language models uses 5 checkpoints saved 1,000 to 3,000 steps apart at a high learning rate.

    Paper: Kaddour, "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging",
    2022, arXiv 2209.14981; Sanyal et al., "Early Weight Averaging meets High Learning Rates for LLM Pre-training",
    COLM 2024, arXiv 2306.03241.
    """

    name: ClassVar[str] = "lawa"
    summary: ClassVar[str] = "equal average of a run's latest checkpoints"
    formula: ClassVar[str] = "mean of the last `window` θₖ"
    paper: ClassVar[Paper | None] = Paper(
        "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging",
        "Kaddour",
        2022,
        "2209.14981",
        "sanyalsunny111/Early_Weight_Avg",
    )

    window: Annotated[PositiveInt, Doc("number of latest checkpoints that are averaged")] = 5

    def shares(self, count: int) -> tuple[float, ...]:
        """Equal shares of the last ones."""
        size = min(self.window, count)
        return (0.0,) * (count - size) + (1.0 / size,) * size


@dataclass(frozen=True, kw_only=True)
class Mwa(_Trajectory):
    """Average the checkpoints of a run with weights from a metric of each.

    wₖ ∝ (1/mₖ)^penalty where lower is better (a loss), mₖ^penalty where higher is (a step, an accuracy); with
    `rule: softmax`, exp(∓penalty · mₖ). penalty 0 is the plain mean; a large one leaves only the best checkpoint.

    The paper published no code and its text was not at hand: the power rule is reconstructed from the abstract, and
    the default penalty is a choice. The paper averages the checkpoints of one LoRA run factor by factor: a recipe says
    so with `adapters: factors`; otherwise the changes that they make are averaged.

    Paper: Yu & Choi, "Parameter-Efficient Checkpoint Merging via Metrics-Weighted Averaging", 2025, arXiv 2504.18580.
    """

    name: ClassVar[str] = "mwa"
    summary: ClassVar[str] = "average of a run's checkpoints, weighted by a metric of each"
    formula: ClassVar[str] = "Σ wₖθₖ, wₖ ∝ (1/mₖ)^penalty or mₖ^penalty"
    paper: ClassVar[Paper | None] = Paper(
        "Parameter-Efficient Checkpoint Merging via Metrics-Weighted Averaging", "Yu & Choi", 2025, "2504.18580"
    )
    symmetric: ClassVar[bool] = True
    identity: ClassVar[Any] = {"metric": 2.0}
    example: ClassVar[Any] = {"metric": 2.0}

    metric: Annotated[Real | tuple[float, ...] | None, PerExpert(), Doc("loss, step or score of each checkpoint")] = (
        None
    )
    better: Annotated[Literal["lower", "higher"], Doc("whether a lower or a higher metric is better")] = "lower"
    penalty: Annotated[NonNegative, Doc("how strongly worse checkpoints are held back")] = 1.0
    rule: Annotated[Literal["power", "softmax"], Doc("weights by a power or an exponential of the metric")] = "power"

    def check(self, weights: tuple[float, ...]) -> None:
        """Refuse missing metrics, and metrics that have no power."""
        values = self.metric if isinstance(self.metric, tuple) else (self.metric,)
        if any(value is None for value in values):
            raise RecipeError("'mwa' needs a metric for every checkpoint: metric: {NAME: VALUE, …}.")
        if self.rule == "power" and any(value <= 0 for value in values if value is not None):
            raise RecipeError("the metrics of 'mwa' must be positive for rule: power; use rule: softmax.")

    def shares(self, count: int) -> tuple[float, ...]:
        """Normalised powers or exponentials, computed on logarithms so that a large penalty cannot overflow."""
        assert self.metric is not None  # `check` runs while planning
        values = self.metric if isinstance(self.metric, tuple) else (self.metric,) * count
        sign = -self.penalty if self.better == "lower" else self.penalty
        logs = [sign * (math.log(value) if self.rule == "power" else value) for value in values]
        powers = [math.exp(value - max(logs)) for value in logs]
        return tuple(power / math.fsum(powers) for power in powers)
