"""Factorisations kept on disk."""

from __future__ import annotations

from pathlib import Path

import torch

import plait
from models import family, save_family, tree
from plait.engine._factors import FactorCache
from plait.tensors.factors import factor


def test_a_second_run_finds_the_factors_and_gives_the_same_bytes(tmp_path: Path) -> None:
    base, experts = family(2)
    recipe = {"method": "tsv_merge", **save_family(tmp_path, base, experts)}
    plait.merge(recipe, tmp_path / "plain")
    plait.merge(recipe, tmp_path / "first", factors=tmp_path / "cache")
    kept = sorted((tmp_path / "cache").rglob("*"))
    assert len([p for p in kept if p.suffix == ".safetensors"]) >= 2 * 21
    # another coefficient needs no new factorisation of the deltas
    plait.merge({**recipe, "parameters": {"lambda": 0.5}}, tmp_path / "second", factors=tmp_path / "cache")
    assert sorted((tmp_path / "cache").rglob("*")) == kept
    plait.merge(recipe, tmp_path / "third", factors=tmp_path / "cache")
    assert tree(tmp_path / "third") == tree(tmp_path / "first") == tree(tmp_path / "plain")


def test_a_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    cache = FactorCache(tmp_path)
    first = cache(matrix)
    (entry,) = tmp_path.rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-9])
    again = cache(matrix)
    assert cache.found == 0
    assert all(torch.equal(a, b) for a, b in zip(first.top(4), again.top(4), strict=True))
    third = cache(matrix)
    assert cache.found == 1
    assert all(torch.equal(a, b) for a, b in zip(third.top(4), factor(matrix).top(4), strict=True))
