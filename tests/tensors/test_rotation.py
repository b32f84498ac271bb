"""Rotations in the span of what a weight sees equal those in all dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.tensors.factors import factor
from plait.tensors.rotation import SkewMean, Turn, cayley, closest_rotation, closest_turn, moved_by, rotation_of
from plait.tensors.spectral import svd


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_skew(n: int, seed: int = 0) -> Tensor:
    a = 0.1 * random(n, n, seed=seed) / n**0.5
    return a - a.mT


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("outputs", [5, 9, 20, 60])
def test_a_turn_in_the_span_is_the_turn(outputs: int, some: bool, rank: int | None) -> None:
    inputs = 40
    base = random(outputs, inputs)
    if rank is not None:  # directions that the weight does not see, inside the span too
        base = base[:, :rank] @ random(rank, inputs, seed=5)
    delta = 0.05 * random(outputs, inputs, seed=1)
    rows = torch.arange(outputs) % 3 == 0 if some else slice(None)
    turn = closest_turn(base, delta, rows, factor)
    target = base.clone()
    target[rows] += delta[rows]
    whole = closest_rotation(svd(base.mT @ target))
    assert turn is not None and whole is not None
    counted = outputs + (int(rows.sum()) if isinstance(rows, Tensor) else outputs)
    assert (turn.basis is None) == (4 * counted > 3 * inputs)
    assert torch.allclose(turn.moved(base), base @ whole - base, atol=1e-9)
    found = SkewMean(inputs)
    found.add(turn)
    assert torch.allclose(found.take(1), cayley(whole), atol=1e-8)


@pytest.mark.parametrize("outputs", [3, 40])
def test_what_a_mean_rotation_moves(outputs: int) -> None:
    base, skew = random(outputs, 12), small_skew(12)
    eye = torch.eye(12, dtype=torch.float64)
    wanted = base @ torch.linalg.solve(eye - skew, eye + skew) - base
    assert torch.allclose(moved_by(base, skew.clone()), wanted, atol=1e-12)
    assert torch.allclose(moved_by(base, skew.mT.contiguous().mT.clone()), wanted, atol=1e-12)
    # in float32 the difference is exact to its own size, not to the weight's
    found = moved_by(base.float(), 1e-4 * skew).double()
    exact = base.float().double() @ torch.linalg.solve(eye - 1e-4 * skew, eye + 1e-4 * skew) - base.float().double()
    assert float((found - exact).norm()) <= 1e-6 * float(exact.norm())


def mean_of(skews: list[Tensor], count: int) -> Tensor:
    found = SkewMean(skews[0].shape[0])
    for skew in skews:
        found.add(Turn(rotation_of(skew)))
    return found.take(count)


def test_a_running_mean_of_skews_counts_those_that_are_zero() -> None:
    skews = [small_skew(6, i) for i in range(3)]
    total = skews[0] + skews[1] + skews[2]
    length = sum(float(skew.norm()) for skew in skews)
    assert torch.allclose(mean_of(skews, 3), total * length / 3 / total.norm())
    assert torch.allclose(mean_of(skews, 4), total * length / 4 / total.norm())
    assert not SkewMean(6) and not SkewMean(6).take(2).any()
    assert not mean_of([skews[0], -skews[0]], 2).any()


def test_rotations_of_a_span_add_up_in_all_dimensions() -> None:
    bases = [torch.linalg.qr(random(9, 4, seed=i))[0] for i in range(2)]
    small = [small_skew(4, i) for i in range(2)]
    found = SkewMean(9)
    for basis, skew in zip(bases, small, strict=True):
        found.add(Turn(rotation_of(skew), basis))
    assert found
    whole = [basis @ skew @ basis.mT for basis, skew in zip(bases, small, strict=True)]
    assert torch.allclose(found.take(2), mean_of(whole, 2))
    assert not found


def test_a_turn_of_everything_needs_no_basis() -> None:
    base = random(4, 6)
    rotation = torch.linalg.matrix_exp(small_skew(6))
    assert torch.allclose(Turn(rotation).moved(base), base @ (rotation - torch.eye(6, dtype=torch.float64)))
