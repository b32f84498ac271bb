"""What experts changed, and how far they agree: what one looks at before choosing a method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from plait.engine import Job, Options, Progress, Silent, compile_recipe
from plait.tensors.sketch import WIDTH, overlap, sketch_basis, sketch_directions

__all__ = ["SUBSPACE", "Diff", "TensorDiff", "compare_job", "diff"]

#: size of the leading subspaces that are compared
SUBSPACE = 16
_BLOCK = 1 << 20

Pair = tuple[int, int]


@dataclass(frozen=True)
class TensorDiff:
    """Sums over one tensor; every figure of a report is made of them.

    Attributes:
        base: ‖θ₀‖².
        squares: ‖τᵢ‖² of each expert.
        moved: number of entries each expert moved.
        dots: ⟨τᵢ, τⱼ⟩ of each pair.
        both: entries that both moved; `agree`: those moved the same way.
        ranks: numerical rank of each τᵢ, at most the sketch's width; None where the tensor is no matrix.
        overlaps: overlap of the leading left subspaces of each pair.
    """

    name: str
    role: str
    layer: int | None
    depth: float
    numel: int
    base: float
    squares: tuple[float, ...]
    moved: tuple[int, ...]
    dots: Mapping[Pair, float]
    both: Mapping[Pair, int]
    agree: Mapping[Pair, int]
    ranks: tuple[int, ...] | None
    full_rank: int
    overlaps: Mapping[Pair, float]


@dataclass(frozen=True)
class Diff:
    """The whole comparison."""

    experts: tuple[str, ...]
    tensors: tuple[TensorDiff, ...]

    def pairs(self) -> list[Pair]:
        """All pairs of experts."""
        return list(combinations(range(len(self.experts)), 2))

    def by_role(self) -> dict[str, dict[str, Any]]:
        """Figures of every role, and of all tensors under `all`."""
        roles = list(dict.fromkeys(t.role for t in self.tensors))
        found = {role: self._figures(t for t in self.tensors if t.role == role) for role in roles}
        return {**found, "all": self._figures(self.tensors)}

    def by_layer(self) -> dict[str, dict[str, Any]]:
        """Figures of every layer."""
        layers = sorted({t.layer for t in self.tensors if t.layer is not None})
        return {str(layer): self._figures(t for t in self.tensors if t.layer == layer) for layer in layers}

    def _figures(self, tensors: Iterable[TensorDiff]) -> dict[str, Any]:
        chosen = list(tensors)
        numel = sum(t.numel for t in chosen)
        base = math.sqrt(sum(t.base for t in chosen))
        squares = [sum(t.squares[i] for t in chosen) for i in range(len(self.experts))]
        experts: dict[str, dict[str, Any]] = {}
        for i, name in enumerate(self.experts):
            ranks = sorted(t.ranks[i] for t in chosen if t.ranks is not None)
            norm = math.sqrt(squares[i])
            experts[name] = {
                "norm": norm,
                "relative_norm": norm / base if base else None,
                "density": sum(t.moved[i] for t in chosen) / numel if numel else None,
                "median_rank": ranks[len(ranks) // 2] if ranks else None,
            }
        pairs: dict[str, dict[str, Any]] = {}
        for i, j in self.pairs():
            size = math.sqrt(squares[i] * squares[j])
            both = sum(t.both[i, j] for t in chosen)
            shared = [t.overlaps[i, j] for t in chosen if (i, j) in t.overlaps]
            pairs[f"{self.experts[i]} ~ {self.experts[j]}"] = {
                "cosine": sum(t.dots[i, j] for t in chosen) / size if size else None,
                "sign_agreement": sum(t.agree[i, j] for t in chosen) / both if both else None,
                "subspace_overlap": sum(shared) / len(shared) if shared else None,
            }
        return {"tensors": len(chosen), "parameters": numel, "base_norm": base, "experts": experts, "pairs": pairs}

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data."""
        single = {t.name: {"role": t.role, "layer": t.layer, **self._figures([t])} for t in self.tensors}
        return {
            "experts": list(self.experts),
            "rank_is_at_most": WIDTH,
            "subspace": SUBSPACE,
            "roles": self.by_role(),
            "layers": self.by_layer(),
            "tensors": single,
        }


def diff(
    base: str, experts: Mapping[str, str], *, options: Options | None = None, progress: Progress | None = None
) -> Diff:
    """Read every delta once and compare.

    Ranks and subspaces come from 128 random projections of each matrix, accumulated block by block: a rank below 128
    is exact, a larger one reads 128.

    Args:
        base: the base model.
        experts: name → model.
        options: threads to use.
        progress: told about bytes.

    Raises:
        PlaitError: as for a merge of these models.
    """
    options = options or Options()
    options.check()
    progress = progress or Silent()
    plan = compile_recipe({"method": "task_arithmetic", "base": base, "experts": dict(experts)})
    jobs = [job for job in plan.jobs if not job.copies]
    progress.phase("comparing", sum(s.nbytes for job in jobs for s in job.sources))
    before = torch.get_num_threads()

    def work(job: Job) -> TensorDiff:
        found = compare_job(job)
        progress.advance(sum(s.nbytes for s in job.sources))
        return found

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(options.threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            return Diff(plan.chain.experts, tuple(pool.map(work, jobs)))
    finally:
        torch.set_num_threads(before)


def compare_job(job: Job) -> TensorDiff:
    """Read one tensor of all models and add up what a comparison is made of."""
    count, role = len(job.experts), job.role
    pairs = list(combinations(range(count), 2))
    matrix = len(job.entry.shape) == 2 and min(job.entry.shape) > 1
    row = job.entry.shape[-1] if matrix else 1
    omega = sketch_directions(row) if matrix else None
    projected: list[list[Tensor]] = [[] for _ in range(count)]
    base, squares, moved = 0.0, [0.0] * count, [0] * count
    dots = dict.fromkeys(pairs, 0.0)
    both, agree = dict.fromkeys(pairs, 0), dict.fromkeys(pairs, 0)
    step = max(1, _BLOCK // row) * row
    assert job.base is not None
    for start in range(0, job.entry.numel, step):
        stop = min(start + step, job.entry.numel)
        origin = job.base.read(start, stop).to(job.compute)
        base += float(origin.double().square().sum())
        values = [(t.read(start, stop).to(job.compute), t.space) for t in job.experts]
        deltas = [value if space == "delta" else value - origin for value, space in values]
        signs = [delta.sign() for delta in deltas]
        for i, delta in enumerate(deltas):
            squares[i] += float(delta.double().square().sum())
            moved[i] += int(delta.count_nonzero())
            if omega is not None:
                projected[i].append(delta.view(-1, row).float() @ omega)
        for i, j in pairs:
            dots[i, j] += float(torch.dot(deltas[i].double(), deltas[j].double()))
            product = signs[i] * signs[j]
            both[i, j] += int(product.count_nonzero())
            agree[i, j] += int((product > 0).sum())
    ranks, overlaps = _subspaces([torch.cat(p) for p in projected], pairs) if matrix else (None, {})
    kind, numel, full = role.kind, job.entry.numel, min(job.entry.shape) if matrix else 0
    return TensorDiff(
        job.name,
        kind,
        role.layer,
        role.depth,
        numel,
        base,
        tuple(squares),
        tuple(moved),
        dots,
        both,
        agree,
        ranks,
        full,
        overlaps,
    )


def _subspaces(projected: list[Tensor], pairs: list[Pair]) -> tuple[tuple[int, ...], dict[Pair, float]]:
    found = [sketch_basis(p) for p in projected]
    bases = [factors.u[:, : min(rank, SUBSPACE)] for factors, rank in found]
    overlaps = {(i, j): overlap(bases[i], bases[j]) for i, j in pairs if bases[i].shape[1] and bases[j].shape[1]}
    return tuple(rank for _, rank in found), overlaps
