"""Tensors that a method must see whole: read piece by piece, one expert at a time, and planned so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import plait
from plait.engine import compile_recipe
from plait.engine._evaluate import Evaluator
from plait.engine._hashes import InputHashes, digest_of
from plait.errors import NonFiniteError
from plait.tensors.streams import Stream

NAME = "model.layers.0.mlp.up_proj.weight"
SHAPE = (1100, 1000)  # more than one piece


def models(count: int, seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=rng) for _ in range(count)]


def recipe(home: Path, method: Any, tensors: list[Tensor]) -> dict[str, Any]:
    for i, tensor in enumerate(tensors):
        save_file({NAME: tensor}, home / f"{i}.safetensors")
    experts = {f"e{i}": str(home / f"{i}.safetensors") for i in range(1, len(tensors))}
    return {"method": method, "base": str(home / "0.safetensors"), "experts": experts}


def test_experts_are_read_when_looked_at_and_hashed_once(tmp_path: Path) -> None:
    tensors = models(3)
    plan = compile_recipe(recipe(tmp_path, "tsv_merge", tensors))
    hashes = InputHashes()
    evaluator = Evaluator(plan, hashes=hashes)
    (job,) = plan.jobs
    group = evaluator._group(job, 0, job.entry.numel)
    assert isinstance(group.given, Stream) and isinstance(group.deltas, Stream)
    assert group.base is not None and torch.equal(group.base, tensors[0])
    for _ in range(2):
        for expert, delta, tensor in zip(group.experts, group.deltas, tensors[1:], strict=True):
            assert torch.equal(expert, tensor) and torch.equal(delta, tensor - tensors[0])
    group.deltas[0].zero_()
    assert torch.equal(group.deltas[0], tensors[1] - tensors[0])
    assert [hashes.get(t) for t in job.sources] == [digest_of(t) for t in job.sources]


@pytest.mark.parametrize("method", ["opcm", ["ties", "svc"], ["dare", "task_arithmetic", "svc"]])
def test_files_give_what_dictionaries_give(tmp_path: Path, method: Any) -> None:
    tensors = [tensor[:60, :50].contiguous() for tensor in models(3)]
    plait.merge(recipe(tmp_path, method, tensors), tmp_path / "out")
    found = plait.Checkpoint.open(tmp_path / "out")[NAME].load()
    merged = plait.merge_state_dicts(
        method, {f"e{i}": {NAME: t} for i, t in enumerate(tensors[1:], 1)}, {NAME: tensors[0]}
    )
    assert torch.equal(found, merged[NAME])


def test_damage_in_a_later_piece_is_named(tmp_path: Path) -> None:
    tensors = models(3)
    tensors[2].view(-1)[1_050_000] = float("nan")
    with pytest.raises(NonFiniteError, match=r"up_proj.*first at flat index 1050000"):
        plait.merge(recipe(tmp_path, "tsv_merge", tensors), tmp_path / "out")


def test_the_plan_counts_one_expert_of_a_whole_tensor_and_all_of_a_block(tmp_path: Path) -> None:
    tensors = models(5)

    def need(method: Any, count: int) -> float:
        (job,) = compile_recipe(recipe(tmp_path, method, tensors[: count + 1])).jobs
        return job.memory(job.entry.numel) / (4 * job.entry.numel)

    assert need("tsv_merge", 2) == pytest.approx(need("tsv_merge", 4))
    assert need("task_arithmetic", 4) > need("task_arithmetic", 2) + 1.9
    # what a sparsifier returns is held
    assert need(["dare", "tsv_merge"], 4) >= need(["dare", "tsv_merge"], 2) + 1.9
