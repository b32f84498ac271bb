"""Sparse adapters: fused and taken out bit by bit, disjoint ones in any order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_files import noise
from torch import Tensor

from plait.adapters import SparseChange, extract_sparse, fuse, load_sparse, merge_sparse, save_sparse, unfuse
from plait.errors import AdapterError, IncompatibleModelsError

State = dict[str, Tensor]


def base(dtype: torch.dtype) -> State:
    return {"up.weight": noise(12, 8).to(dtype), "down.weight": noise(8, 12, seed=1).to(dtype), "n": noise(8, seed=2)}


def tuned(origin: State, channels: list[int], seed: int) -> State:
    model = {k: v.clone() for k, v in origin.items()}
    model["up.weight"][channels] += noise(len(channels), 8, seed=seed).to(model["up.weight"].dtype)
    model["down.weight"][:, channels] += noise(8, len(channels), seed=seed + 1).to(model["down.weight"].dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fuse_and_unfuse_are_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    """In every dtype, through a file."""
    origin = base(dtype)
    model = tuned(origin, [1, 5, 6], 3)
    adapter = extract_sparse(origin, model)
    assert {k: (c.axis, c.indices.tolist()) for k, c in adapter.items()} == {
        "up.weight": ("row", [1, 5, 6]),
        "down.weight": ("column", [1, 5, 6]),
    }
    save_sparse(adapter, tmp_path / "a")
    stored = load_sparse(tmp_path / "a")
    now = {k: v.clone() for k, v in origin.items()}
    before = fuse(now, stored)
    assert all(torch.equal(now[k], model[k]) for k in model)
    unfuse(now, stored, before)
    assert all(torch.equal(now[k], origin[k]) for k in origin)


def test_disjoint_adapters_commute_and_add_up() -> None:
    """In the base's dtype, to the bit; overlaps are summed."""
    origin = base(torch.bfloat16)
    one, two = (extract_sparse(origin, tuned(origin, c, s)) for c, s in (([0, 3], 5), ([4, 7], 9)))
    first, second, third = ({k: v.clone() for k, v in origin.items()} for _ in range(3))
    fuse(first, one)
    fuse(first, two)
    fuse(second, two)
    fuse(second, one)
    fuse(third, merge_sparse([one, two]))
    assert all(torch.equal(first[k], second[k]) and torch.equal(first[k], third[k]) for k in origin)
    both = merge_sparse([one, one], [0.5, 0.25])["up.weight"]
    assert both.indices.tolist() == [0, 3]
    assert torch.allclose(both.values, 0.75 * one["up.weight"].values)


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    """And says why."""
    origin = base(torch.float32)
    adapter = extract_sparse(origin, tuned(origin, [11], 1))
    small = {k: v.clone() for k, v in origin.items()} | {"down.weight": noise(8, 11)}
    kept = small["up.weight"].clone()
    with pytest.raises(IncompatibleModelsError, match=r"columns of down\.weight that are not there"):
        fuse(small, adapter)
    assert torch.equal(small["up.weight"], kept)
    with pytest.raises(AdapterError, match="no sparse adapter"):
        extract_sparse(origin, tuned(origin, list(range(12)), 1))
    with pytest.raises(AdapterError, match="another its columns"):
        merge_sparse([adapter, {"up.weight": SparseChange("column", torch.tensor([0]), torch.ones(12, 1))}])
    with pytest.raises(AdapterError, match="holds no sparse adapter"):
        load_sparse(tmp_path)
