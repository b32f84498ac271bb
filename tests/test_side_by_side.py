"""Small tensors that lie side by side: computed by one call, with the bits, hashes and errors of each by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import plait
from models import State
from plait.engine._loops import Loops
from plait.engine._side_by_side import side_by_side
from plait.errors import NonFiniteError
from plait.kernels._build import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C compiler")

COUNT = 40


def shape(index: int) -> tuple[int, ...]:
    return (7, 3 + index % 5) if index % 3 else (11,)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """A base and two experts of small tensors, one that is large, and one of no elements."""
    rng = torch.Generator().manual_seed(0)
    names = {f"layers.{i:02d}.w": shape(i) for i in range(COUNT)} | {"m.large": (300, 100), "layers.20.none": (0, 3)}
    base: State = {name: torch.randn(size, generator=rng).bfloat16() for name, size in names.items()}
    found = []
    for index in range(3):
        steps = {name: torch.randn(value.shape, generator=rng) for name, value in base.items()}
        state = {name: (value + 0.1 * index * steps[name]).bfloat16() for name, value in base.items()}
        found.append(tmp_path / f"model{index}")
        found[-1].mkdir()
        save_file(state, found[-1] / "model.safetensors")
    return found


def recipe(method: Any, folders: list[Path], **others: Any) -> dict[str, Any]:
    experts = {f"e{i}": str(folder) for i, folder in enumerate(folders[1:])}
    return {"method": method, "base": str(folders[0]), "experts": experts, **others}


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of tensors of every merge of several at once."""
    found: list[int] = []
    original = Loops.merged_together

    def spy(self: Loops, bound: Any, jobs: Any) -> Any:
        found.append(len(jobs))
        return original(self, bound, jobs)

    monkeypatch.setattr(Loops, "merged_together", spy)
    return found


@pytest.mark.parametrize(
    ("method", "joins"),
    [
        ("task_arithmetic", True),
        ("ties", True),
        ([{"ties": {"rescale": "l1"}}], True),  # its sums are counted tensor by tensor, its merge is not
        ([{"ties": {"scope": "tensor"}}], False),
        ("dare_linear", False),
        ("sce", False),
    ],
)
def test_the_bits_and_hashes_are_those_of_single_tensors(
    folders: list[Path], tmp_path: Path, together: list[int], monkeypatch: pytest.MonkeyPatch, method: Any, joins: bool
) -> None:
    one = plait.merge(recipe(method, folders), tmp_path / "one", compile="always", threads=1)
    assert bool(together) == joins
    monkeypatch.setattr("plait.engine._run.side_by_side", lambda jobs: [[job] for job in jobs])
    monkeypatch.setattr("plait.engine._surveys.side_by_side", lambda jobs: [[job] for job in jobs])
    other = plait.merge(recipe(method, folders), tmp_path / "other", compile="never", threads=1)
    assert one.digests == other.digests
    assert one.inputs == other.inputs
    files = [tmp_path / name / "model.safetensors" for name in ("one", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    resolved = [json.loads((tmp_path / name / "plait.json").read_text())["inputs"] for name in ("one", "other")]
    assert resolved[0] == resolved[1]


def test_a_sample_runs_over_many_small_tensors(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of the sample is larger than any tensor but one; which it takes does not change the result."""
    from plait.engine import _rounds

    sampled: list[int] = []
    original = _rounds._Rounds.sample
    monkeypatch.setattr(_rounds, "_WORTH", 1)
    monkeypatch.setattr(_rounds, "_CHUNK", 1 << 10)
    monkeypatch.setattr(_rounds, "_ENOUGH", 1 << 13)
    monkeypatch.setattr(_rounds._Rounds, "sample", lambda *a: sampled.append(original(*a)) or sampled[-1])
    asked = recipe("ties", folders)
    plan = plait.plan(asked)
    total = sum(job.entry.numel for job in plan.jobs)
    one = plait.merge(plan, tmp_path / "one", compile="always")
    assert total // 3 - 1024 <= sum(sampled) <= total // 3 + 1024
    assert one.digests == plait.merge(asked, tmp_path / "other", compile="never").digests


def test_what_is_not_finite_is_named(folders: list[Path], tmp_path: Path) -> None:
    file = folders[2] / "model.safetensors"
    state = load_file(file)
    state["layers.31.w"].view(-1)[4] = float("nan")
    save_file(state, file)
    for method in ("task_arithmetic", "ties"):
        with pytest.raises(NonFiniteError, match=r"layers\.31\.w.*flat index 4"):
            plait.merge(recipe(method, folders), tmp_path / "out", compile="always")


def test_an_overflow_is_named(folders: list[Path], tmp_path: Path) -> None:
    for folder in folders:
        file = folder / "model.safetensors"
        state = load_file(file)
        state["layers.31.w"].view(-1)[4] = 6e4
        save_file({name: value.float() for name, value in state.items()}, file)
    asked = recipe([{"linear": {"normalize": False}}], folders, dtype="float16")
    del asked["base"]
    with pytest.raises(NonFiniteError, match=r"layers\.31\.w.*does not fit into"):
        plait.merge(asked, tmp_path / "out", compile="always")


def test_runs_end_where_something_differs(folders: list[Path]) -> None:
    def runs(**others: Any) -> list[list[str]]:
        jobs = plait.plan(recipe("task_arithmetic", folders, **others)).jobs
        return [[job.name for job in run] for run in side_by_side(jobs)]

    found = runs()
    assert [name for run in found for name in run] == sorted(load_file(folders[0] / "model.safetensors"))
    assert ["layers.20.none"] in found
    assert ["m.large"] in found
    assert len(found) == 4
    weighted = {"e0": {"model": str(folders[1]), "weight": [{"value": 1.0}, {"match": "layers.0*", "value": 0.5}]}}
    ends = [run[-1] for run in runs(experts={**weighted, "e1": str(folders[2])})]
    assert "layers.09.w" in ends


def test_files_in_another_order_are_merged_alike(folders: list[Path], tmp_path: Path, together: list[int]) -> None:
    expected = plait.merge(recipe("ties", folders), tmp_path / "one", compile="always").digests
    state = load_file(folders[1] / "model.safetensors")
    # safetensors writes wider dtypes first, then by name: a new order by splitting the model into two files
    names = list(state)
    index = {name: f"part{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(index.values()):
        save_file({name: state[name] for name in names if index[name] == part}, folders[1] / part)
    (folders[1] / "model.safetensors").unlink()
    (folders[1] / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    together.clear()
    assert plait.merge(recipe("ties", folders), tmp_path / "two", compile="always").digests == expected
    assert not together
