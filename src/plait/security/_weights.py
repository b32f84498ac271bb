"""Evidence in the weights: does a model descend from another one, was it transformed, is every number finite?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from plait.architectures import roles_of
from plait.checkpoints import Checkpoint, LazyTensor
from plait.security._findings import Finding
from plait.security._invariants import compare_products

__all__ = ["Evidence", "Sample", "judge", "sample_of", "scan", "weigh"]

_BLOCK = 1 << 20
#: ‖θ − θ₀‖/‖θ₀‖ of matrices: two independent trainings are at √2; fine-tunes of the literature stay below 0.1
_FAR, _STRANGE = 0.4, 1.0
#: relative distance of products that a change of basis leaves alone, below which raw weights that are far apart are
#: the same network written differently
_SAME_FUNCTION = 0.4


@dataclass(frozen=True)
class Sample:
    """Tensors that are looked at: the first, the middle and the last layer, and all vectors.

    Attributes:
        layers: the names of each of these layers.
        matrices: names of the attention and MLP matrices among them.
        names: every tensor that is read.
    """

    layers: tuple[tuple[str, ...], ...]
    matrices: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """How far a model is from the one it is compared with.

    Attributes:
        relative: matrix → ‖θ − θ₀‖/‖θ₀‖.
        products: layer's product (qk, vo, mlp) → the same distance of a product that a change of basis leaves alone.
    """

    relative: Mapping[str, float] = field(default_factory=dict)
    products: Mapping[str, float] = field(default_factory=dict)

    @property
    def distance(self) -> float | None:
        """Median over the matrices; None where none could be compared."""
        return statistics.median(self.relative.values()) if self.relative else None


def sample_of(checkpoint: Checkpoint) -> Sample:
    """Choose the tensors that stand for a model."""
    roles = roles_of(checkpoint.tensors)
    stacks: dict[str, int] = {}
    for role in roles.values():
        if role.layer is not None:
            stacks[role.stack] = stacks.get(role.stack, 0) + 1
    layers: list[tuple[str, ...]] = []
    if stacks:
        stack = max(stacks, key=lambda s: stacks[s])
        count = next(role.layers for role in roles.values() if role.stack == stack)
        for layer in sorted({0, count // 2, count - 1}):
            layers.append(tuple(n for n, r in roles.items() if r.stack == stack and r.layer == layer))
    else:
        layers.append(tuple(checkpoint.tensors))
    inside = [name for layer in layers for name in layer]
    matrices = [
        n for n in inside if len(checkpoint[n].shape) >= 2 and roles[n].kind not in ("norm", "embedding", "router")
    ]
    vectors = [n for n, t in checkpoint.tensors.items() if len(t.shape) < 2]
    return Sample(tuple(layers), tuple(matrices), tuple(dict.fromkeys([*inside, *vectors])))


def scan(name: str, checkpoint: Checkpoint, names: Iterable[str]) -> Iterator[Finding]:
    """Yield the first of these tensors that is not finite, with the number of all that are not."""
    bad: list[tuple[str, int, LazyTensor]] = []
    for key in names:
        tensor = checkpoint.tensors.get(key)
        if tensor is None or not tensor.dtype.is_floating_point:
            continue
        count = sum(int((~block.isfinite()).sum()) for block in _blocks(tensor))
        if count:
            bad.append((key, count, tensor))
    if bad:
        key, count, tensor = bad[0]
        more = f"; {len(bad) - 1} more tensors have some too" if len(bad) > 1 else ""
        yield Finding(
            "nonfinite",
            "blocks",
            name,
            f"tensor {key!r} of {name} ({tensor.source}) holds {count:,} NaN or infinite numbers{more}.",
            "The file is damaged or its training diverged: get it again, or take these tensors from another model "
            "with a `copy` rule.",
        )


def _blocks(tensor: LazyTensor) -> Iterator[torch.Tensor]:
    for start in range(0, tensor.numel, _BLOCK):
        yield tensor.read(start, min(start + _BLOCK, tensor.numel))


def weigh(first: Checkpoint, other: Checkpoint, sample: Sample) -> Evidence:
    """Compare the sampled matrices of two models, block by block."""
    relative: dict[str, float] = {}
    for name in sample.matrices:
        a, b = first.find(name), other.find(name)
        if a is None or b is None or a.shape != b.shape or not a.dtype.is_floating_point:
            continue
        size = apart = 0.0
        for x, y in zip(_blocks(a), _blocks(b), strict=True):
            x = x.float()
            size += float(x.double().square().sum())
            apart += float((y.float() - x).double().square().sum())
        if size and math.isfinite(apart):
            relative[name] = math.sqrt(apart / size)
    products: dict[str, float] = {}
    evidence = Evidence(relative)
    if (evidence.distance or 0.0) > _FAR or any(v > _FAR for v in relative.values()):
        products = compare_products(first, other, sample.layers)
    return Evidence(relative, products)


def judge(first: str, name: str, evidence: Evidence) -> Iterator[Finding]:
    """Yield what the evidence says of the ancestry of a model."""
    distance = evidence.distance
    if distance is None:
        yield Finding(
            "ancestry",
            "notes",
            name,
            f"no matrices of {name} and {first} could be compared: nothing is known of their ancestry.",
        )
        return
    far = [key for key, value in evidence.relative.items() if value > _FAR]
    rewritten = [key for key, value in evidence.products.items() if value < _SAME_FUNCTION and _far_inside(key, far)]
    if rewritten:
        worst = max(far, key=lambda key: evidence.relative[key])
        yield Finding(
            "locked",
            "blocks",
            name,
            f"{name} looks locked or permuted: {worst!r} is {100 * evidence.relative[worst]:.0f} % away from {first}, "
            f"but what matrices compute together is not ({_few(rewritten)}). Averages of such weights mean "
            "nothing.",
            "Use a release of the model in its base's own basis, or align it before merging.",
        )
    elif distance > _STRANGE:
        yield Finding(
            "ancestry",
            "blocks",
            name,
            f"{name} does not descend from {first}: its matrices are {100 * distance:.0f} % of their size away (two "
            "independent trainings: 141 %).",
            f"Merge models that were fine-tuned from one base, or name the right base of {name}.",
        )
    elif distance > _FAR:
        yield Finding(
            "ancestry",
            "warns",
            name,
            f"{name} is far from {first}: its matrices moved by {100 * distance:.0f} % of their size; fine-tuning "
            "moves them by a few per cent.",
            f"Make sure that {name} was trained from {first}; after a long training it may need a small weight.",
        )


def _far_inside(product: str, far: list[str]) -> bool:
    """Whether one of the matrices that are far away belongs to the layer of a product."""
    layer = product.rsplit(" ", 1)[0]
    return any(name.startswith(layer) for name in far)


def _few(items: list[str], limit: int = 3) -> str:
    """Join a few items on one line."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
