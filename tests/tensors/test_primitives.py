"""The shared mathematics against plain definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.tensors.consensus import disjoint_merge, elect
from plait.tensors.randomness import SEGMENT, Draws
from plait.tensors.selection import count_coarse, count_fine, kth_largest, locate, row_threshold
from plait.tensors.sums import ExactSum, dot, norm1, segment_sums

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(floats, min_size=1, max_size=60), st.data())
def test_counting_finds_the_exact_order_statistic(values: list[float], data: st.DataObject) -> None:
    """Whatever the values and however they are split into blocks."""
    rank = data.draw(st.integers(1, len(values)))
    cut = data.draw(st.integers(0, len(values)))
    parts = [torch.tensor(p, dtype=torch.float32) for p in (values[:cut], values[cut:])]
    coarse = locate(count_coarse(parts[0]) + count_coarse(parts[1]), rank)
    fine = count_fine(parts[0], coarse.bin) + count_fine(parts[1], coarse.bin)
    wanted = sorted((abs(np.float32(v)) for v in values), reverse=True)[rank - 1]
    assert kth_largest(coarse, fine) == float(wanted)


def test_row_thresholds() -> None:
    values = torch.tensor([[3.0, -1.0, 2.0], [0.0, 5.0, -5.0]])
    assert row_threshold(values, 2).tolist() == [[2.0], [5.0]]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300), max_size=30))
def test_exact_sums_do_not_depend_on_order(values: list[float]) -> None:
    total = ExactSum()
    for value in reversed(values):
        total = total + ExactSum.of(value)
    assert total == ExactSum.of(*values)
    exact = sum((Fraction(v) for v in values), Fraction(0))
    assert Fraction(total.units, 1 << 1074) == exact
    if abs(exact) < 1e300:
        assert float(total) == pytest.approx(math.fsum(values), rel=1e-15, abs=0)


def test_sums_are_the_same_in_blocks() -> None:
    x, y = torch.randn(2, 3 * SEGMENT + 77, generator=torch.Generator().manual_seed(0))
    for step in (SEGMENT, 2 * SEGMENT):
        parts = [dot(x[i : i + step], y[i : i + step]) for i in range(0, x.numel(), step)]
        assert sum(parts[1:], parts[0]) == dot(x, y)
    assert float(dot(x, y)) == pytest.approx(float(x.double() @ y.double()), rel=1e-12)
    assert float(norm1(x)) == pytest.approx(float(x.double().abs().sum()), rel=1e-12)
    assert float(segment_sums(x)) == pytest.approx(float(x.double().sum()), rel=1e-10)


@given(st.integers(0, 3 * SEGMENT), st.integers(0, 1000))
def test_draws_do_not_depend_on_the_block(offset: int, length: int) -> None:
    draws = Draws(7, "layer.weight")
    whole = draws.uniform("a", 0, offset + length)
    assert torch.equal(draws.uniform("a", offset, length), whole[offset:])


def test_draws_differ_by_seed_tensor_and_expert_and_are_uniform() -> None:
    one = Draws(0, "w").uniform("a", 0, SEGMENT * 2)
    others = [
        Draws(1, "w").uniform("a", 0, SEGMENT),
        Draws(0, "v").uniform("a", 0, SEGMENT),
        Draws(0, "w").uniform("b", 0, SEGMENT),
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([one[:SEGMENT], other]))[0, 1])) < 0.02
    assert not torch.equal(one[:SEGMENT], one[SEGMENT:])
    assert 0 <= float(one.min()) and float(one.max()) < 1
    counts = torch.histc(one, 16, 0, 1)
    expected = one.numel() / 16
    assert float(((counts - expected) ** 2 / expected).sum()) < 40  # chi², 15 degrees of freedom


@given(st.lists(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0]), min_size=4, max_size=4), min_size=1, max_size=4))
def test_disjoint_merge_by_definition(rows: list[list[float]]) -> None:
    deltas = [torch.tensor(r) for r in rows]
    sign = elect(deltas)
    for j in range(4):
        column = [r[j] for r in rows]
        s = np.sign(sum(column))
        assert float(sign[j]) == s
        agree = [v for v in column if v * s > 0]
        assert float(disjoint_merge(deltas, sign, [1.0] * len(rows))[j]) == pytest.approx(
            sum(agree) / len(agree) if agree else 0.0
        )
        assert float(disjoint_merge(deltas, sign, [1.0] * len(rows), "sum")[j]) == pytest.approx(sum(agree))
        assert float(disjoint_merge(deltas, sign, [1.0] * len(rows), "max")[j]) == pytest.approx(
            s * max((abs(v) for v in agree), default=0.0)
        )
