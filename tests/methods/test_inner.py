"""Any method inside the spaces of KnOTS and Core Space."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from plait.architectures import Role
from plait.errors import RecipeError
from plait.methods import Subject, find

NAME = "model.layers.0.mlp.up_proj.weight"


def _update(method: str, *, seed: int = 0, rank: int = 3, **parameters: Any) -> Tensor:
    """The merged change of three experts of low rank."""
    rng = torch.Generator().manual_seed(5)
    deltas = [torch.randn(24, rank, generator=rng) @ torch.randn(rank, 18, generator=rng) for _ in range(3)]
    zero = torch.zeros(24, 18)
    return plait.merge_state_dicts(method, [{NAME: d} for d in deltas], {NAME: zero}, seed=seed, **parameters)[NAME]


@pytest.mark.parametrize("method", ["knots", "core_space"])
def test_a_sum_by_name_is_the_sum(method: str) -> None:
    assert torch.allclose(_update(method, inner="task_arithmetic"), _update(method, inner="sum"), atol=1e-4)
    assert torch.allclose(_update(method, inner="linear"), _update(method, inner="mean"), atol=1e-4)


def test_isotropic_merging_does_not_depend_on_the_basis() -> None:
    """What only sees singular values gives in the small space what it gives outside."""
    outside, inside = _update("iso_c"), _update("core_space", inner="iso_c")
    assert torch.allclose(inside, outside, atol=1e-3 * float(outside.abs().max()))


@pytest.mark.parametrize("method", ["knots", "core_space"])
def test_chains_surveys_and_random_numbers_work_inside(method: str) -> None:
    first = _update(method, inner="dare_ties", density=0.5)
    assert torch.equal(first, _update(method, inner="dare_ties", density=0.5))
    assert not torch.equal(first, _update(method, inner="dare_ties", density=0.5, seed=1))
    # the result stays in the space: of rank nine at most, where a mask on the matrix itself would give all eighteen
    assert int(torch.linalg.matrix_rank(first, rtol=1e-4)) <= 9
    assert int(torch.linalg.matrix_rank(_update("dare_ties", **{"dare.density": 0.5}), rtol=1e-4)) > 9
    for inner in ("pcb", "consensus_ta", "sce", "karcher", "widen", "della"):
        assert bool(_update(method, inner=inner).isfinite().all()), inner


def test_what_cannot_stand_inside_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="merges nothing by itself"):
        _update("knots", inner="dare")
    with pytest.raises(RecipeError, match="Did you mean 'dare_ties'"):
        _update("core_space", inner="dare_tise")
    with pytest.raises(RecipeError, match="cannot stand inside"):
        _update("core_space", inner="core_space")
    with pytest.raises(RecipeError, match="'lora_lego' cannot stand inside 'knots'"):
        _update("knots", inner="lora_lego")


@pytest.mark.parametrize("method", ["knots", "core_space"])
def test_the_plan_counts_what_the_method_inside_needs(method: str) -> None:
    """It sees the cores of all experts at once; methods of the space's own look at one at a time."""
    subject = Subject(NAME, (300, 500), Role("mlp"))
    few, many = (
        [find(method)(inner=inner).arrays(subject, experts) for inner in ("ties", "dare_ties")] for experts in (2, 8)
    )
    assert few[1] > few[0] + 3 and many[1] > many[0] + 9
