"""The contract of a method: what it declares, what it sees, what it returns.

A method is a frozen dataclass of keyword hyper-parameters whose defaults are the authors' code, with pure functions
on one `Group`: the same tensor (or a block of it) across all models. It knows no file, device or thread.

Three kinds exist, so that a paper reads as a composition:

- `Combiner`: experts in, one merged weight out (`merge`).
- `Sparsifier`: stands in front of any combiner and changes each expert's delta (`sparsify`).
- `Modifier`: stands behind any combiner and changes `group.merged` (`adjust`).

A method that must see *all* of a tensor, or of the model, before it can merge any of it declares `rounds` of counting:
in each round the engine adds up `survey(group)` over every block of its `scope` and hands the totals to the next
round and to the merge as `group.facts`. Summaries form a monoid under `+` that is exact (integers, `ExactSum`),
so the totals do not depend on blocks, threads or order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor

from plait.methods._parameters import Parameter, parameters_of
from plait.tensors.factors import Factors, factor
from plait.tensors.lowrank import LowRank
from plait.tensors.randomness import Draws
from plait.tensors.streams import Stream

__all__ = ["Combiner", "Group", "Method", "Modifier", "Paper", "RoleLike", "Sparsifier", "Subject", "Summary"]

Unit = Literal["element", "row", "tensor"]
Scope = Literal["tensor", "model"]


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    authors: str
    year: int
    arxiv: str = ""
    code: str = ""

    @property
    def cite(self) -> str:
        """Short citation: authors, year, arXiv number."""
        return f"{self.authors} {self.year}" + (f", arXiv {self.arxiv}" if self.arxiv else "")


class RoleLike(Protocol):
    """What a method may know of a tensor's place in the model (see `plait.architectures.Role`)."""

    @property
    def kind(self) -> str: ...
    @property
    def stack(self) -> str: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def layers(self) -> int: ...
    @property
    def depth(self) -> float: ...


class Summary(Protocol):
    """A monoid: what one block contributes to a survey."""

    def __add__(self, other: Self, /) -> Self: ...


@dataclass(frozen=True)
class Subject:
    """The tensor a group is about: known from headers, before any byte is read."""

    name: str
    shape: tuple[int, ...]
    role: RoleLike

    @property
    def numel(self) -> int:
        """Number of elements of the whole tensor."""
        return int(torch.Size(self.shape).numel())

    @property
    def row(self) -> int:
        """Length of one row (the last dimension); a scalar or a vector is one row."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True, eq=False)
class Group:
    """One tensor, or one block of it, across all models, in float32 (float64 where an input is).

    Attributes:
        subject: name, full shape and role of the tensor.
        base: the base model's values, or None without a base.
        given: the experts' values (`experts`), or their deltas where `given_deltas` is set.
        names: the experts' names, in the recipe's order.
        weights: the resolved weight of each expert.
        facts: the totals of the finished survey rounds of the method that is being run.
        offset: flat index of the block's first element within the tensor.
        draws: the source of uniform numbers of this tensor.
        merged: what the combiner returned; set for modifiers only.
        low_rank: the deltas by their factors, where all of them are known so (adapters) and the tensor is seen whole.
        exact: the deltas are known as such, not as differences of rounded weights.

    An `element` method sees 1-D blocks, a `row` method blocks of shape (rows, row), a `tensor` method the whole
    tensor in its own shape. Whole tensors are large: their experts and deltas are a `Stream`, read again at every look
    and not kept, so that a loop over them holds one at a time.
    """

    subject: Subject
    base: Tensor | None
    given: Sequence[Tensor]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    facts: Sequence[Any] = ()
    offset: int = 0
    draws: Draws = field(default_factory=lambda: Draws(0, ""))
    given_deltas: bool = False
    merged: Tensor | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    factoriser: Callable[[Tensor], Factors] = factor
    low_rank: Sequence[LowRank] | None = None
    exact: bool = False

    @property
    def name(self) -> str:
        """Name of the tensor, as on disk."""
        return self.subject.name

    @property
    def role(self) -> RoleLike:
        """Place of the tensor in the model."""
        return self.subject.role

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self.given)

    @cached_property
    def origin(self) -> Tensor:
        """The base values; zeros without a base, so that a delta is then the weight itself."""
        return self.base if self.base is not None else torch.zeros_like(self.given[0])

    @cached_property
    def experts(self) -> Sequence[Tensor]:
        """θᵢ, the experts' weights."""
        if self.given_deltas and self.base is not None:
            return tuple(self.base + delta for delta in self.given)
        return self.given

    @cached_property
    def deltas(self) -> Sequence[Tensor]:
        """τᵢ = θᵢ − θ₀, the task vectors."""
        base = self.base
        if self.given_deltas or base is None:
            return self.given
        if isinstance(self.given, Stream):
            return self.given.map(lambda expert: expert.sub_(base))
        return tuple(expert - base for expert in self.given)

    def with_deltas(self, deltas: Sequence[Tensor]) -> Group:
        """Return the group with other deltas on the same base."""
        return replace(self, given=tuple(deltas), given_deltas=True, low_rank=None)

    def with_facts(self, facts: Sequence[Any]) -> Group:
        """Return the group as another method sees it, with that method's survey totals."""
        return self if facts is self.facts else replace(self, facts=facts)

    def factor(self, matrix: Float[Tensor, "m n"]) -> Factors:
        """Return the singular values and vectors of a matrix, remembered by its content.

        Factorisations are what spectral methods cost and do not depend on coefficients: a later run, or the next
        point of a sweep, finds them again.
        """
        return self.factoriser(matrix)

    def uniform(self, expert: int) -> Tensor:
        """Draw one number in [0, 1) per element for one expert.

        A function of (seed, tensor name, expert name, flat index) alone: the same bits whatever the blocks,
        threads, shards or device.
        """
        like = self.base if self.base is not None else self.given[expert]
        drawn = self.draws.uniform(self.names[expert], self.offset, like.numel())
        return drawn.to(like.device).view_as(like)


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all kinds. Subclasses declare capabilities as class attributes; the signature is the schema."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None
    kind: ClassVar[Literal["combiner", "sparsifier", "modifier"]]
    #: uses θ₀ (combiners over plain weights do not)
    needs_base: ClassVar[bool] = True
    #: takes θ₀ as the origin where the recipe names a base, and does without where it names none
    optional_base: ClassVar[bool] = False
    #: adding one matrix to the base and to all experts adds it to the result: changes can then be merged by themselves,
    #: without reading the base
    translates: ClassVar[bool] = True
    #: works on the factors of adapters (`group.low_rank`) and has no meaning for other experts
    adapters_only: ClassVar[bool] = False
    #: uses `group.weights`; giving weights to another method is an error
    weighted: ClassVar[bool] = True
    #: the result does not depend on the order of the experts
    symmetric: ClassVar[bool] = True
    min_experts: ClassVar[int] = 1
    max_experts: ClassVar[int | None] = None
    #: calibration statistics the method needs; none for a data-free method
    statistics: ClassVar[frozenset[str]] = frozenset()
    #: parameters under which one expert of weight 1 comes back unchanged; None where no such setting exists
    identity: ClassVar[Mapping[str, Any] | None] = {}
    #: parameters without which the method cannot run (metrics, an order, …), as the conformance suite should set them
    example: ClassVar[Mapping[str, Any]] = {}
    #: rough cost class for the documentation
    cost: ClassVar[Literal["one pass", "survey", "spectral", "iterative"]] = "one pass"
    #: (a, b): arrays of the block's size alive at the peak beside the inputs, a + b · experts, for the memory plan;
    #: measured by benchmarks/method_memory.py
    temporaries: ClassVar[tuple[float, float]] = (4.0, 1.0)
    #: matrices of input dimension × input dimension among them, beyond the one counted for a square matrix
    squares: ClassVar[float] = 0.0

    @property
    def rounds(self) -> int:
        """Number of survey rounds before the method can run."""
        return 0

    @property
    def survey_scope(self) -> Scope:
        """Whether a survey adds up over one tensor or over the whole model."""
        return "tensor"

    @property
    def constant(self) -> frozenset[str]:
        """Parameters that must be one value over the survey's scope."""
        return frozenset()

    @property
    def random(self) -> bool:
        """Whether the method draws random numbers with its present parameters."""
        return False

    @property
    def copies(self) -> bool:
        """Whether, with its present parameters, the result is the only expert unchanged: its bytes are then copied."""
        return False

    def unit(self, subject: Subject) -> Unit:
        """Smallest piece of this tensor that the method can be run on by itself."""
        del subject
        return "element"

    def arrays(self, subject: Subject, experts: int) -> float:
        """Arrays of the block's size that are alive at the peak, beside the inputs."""
        fixed, each = self.temporaries
        wide = subject.row * subject.row / max(subject.numel, 1) if len(subject.shape) == 2 else 1.0
        return fixed + each * experts + self.squares * max(0.0, wide - 1.0)

    def survey(self, group: Group) -> Any:
        """Return what this block contributes to the present round (`len(group.facts)` rounds are finished)."""
        raise NotImplementedError(f"{self.name} declares survey rounds but has no survey")

    def check(self, weights: tuple[float, ...]) -> None:
        """Raise RecipeError for parameters and weights that mean nothing together."""
        del weights

    @classmethod
    def parameters(cls) -> Mapping[str, Parameter]:
        """The hyper-parameters, read from the signature."""
        return parameters_of(cls)


@dataclass(frozen=True, kw_only=True)
class Combiner(Method):
    """Experts in, one merged weight out."""

    kind = "combiner"

    def merge(self, group: Group) -> Tensor:
        """Return the merged weight, of the block's shape."""
        raise NotImplementedError

    def factored(self, subject: Subject) -> bool:
        """Whether `merge_low_rank` merges this tensor."""
        del subject
        return False

    def merge_low_rank(self, group: Group) -> LowRank:
        """Return the merged change by its factors, from those of `group.low_rank`.

        Convolutions come as the matrix (outputs, everything else); `group.subject.shape` is the weight's own.
        """
        raise NotImplementedError(f"{self.name} says that it merges factors, but does not")


@dataclass(frozen=True, kw_only=True)
class Sparsifier(Method):
    """Stands in front of a combiner: changes each expert's delta."""

    kind = "sparsifier"
    weighted = False

    def sparsify(self, group: Group) -> Sequence[Tensor]:
        """Return the changed deltas, one per expert."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Modifier(Method):
    """Stands behind a combiner: changes the merged weight."""

    kind = "modifier"
    weighted = False

    def adjust(self, group: Group) -> Tensor:
        """Return the changed weight; `group.merged` is what the combiner (or the modifier before) returned."""
        raise NotImplementedError
