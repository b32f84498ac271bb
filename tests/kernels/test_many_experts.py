"""Loops over many experts: the compiler is told that the arrays do not overlap, rows are looked at one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import State
from plait import merge_state_dicts
from plait.errors import NonFiniteError
from plait.kernels._build import compiler

COUNT = 18
METHODS: dict[str, Any] = {
    "linear": "linear",
    "ties": "ties",
    "karcher": "karcher",
    "sce": "sce",
    "model_breadcrumbs": "model_breadcrumbs",
    "della": "della",
}

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def models() -> tuple[State, list[State]]:
    """A base and many experts of one matrix, in bfloat16, and of a vector."""
    rng = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(300, 257, generator=rng).bfloat16(), "b": torch.randn(5000, generator=rng).bfloat16()}
    steps = [{name: torch.randn(value.shape, generator=rng) for name, value in base.items()} for _ in range(COUNT)]
    return base, [{name: (value + 0.1 * step[name]).bfloat16() for name, value in base.items()} for step in steps]


@pytest.mark.parametrize("name", METHODS)
def test_the_bits_are_torchs(models: tuple[State, list[State]], name: str) -> None:
    base, experts = models
    given = None if name in ("linear", "karcher") else base
    plain, compiled = (merge_state_dicts(METHODS[name], experts, given, compile=how) for how in ("never", "always"))
    for tensor, wanted in plain.items():
        assert torch.equal(compiled[tensor].view(torch.int16), wanted.view(torch.int16)), tensor


@pytest.mark.parametrize("name", ["linear", "model_breadcrumbs", "della"])
@pytest.mark.parametrize("place", [0, 9, COUNT - 1])
def test_every_input_is_checked(models: tuple[State, list[State]], name: str, place: int) -> None:
    base, experts = models
    broken = [dict(expert) for expert in experts]
    broken[place]["w"] = broken[place]["w"].clone()
    broken[place]["w"][200, 3] = float("inf")
    with pytest.raises(NonFiniteError, match=r"'w'.*infinity"):
        merge_state_dicts(METHODS[name], broken, None if name == "linear" else base, compile="always")
