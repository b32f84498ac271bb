"""Compiled loops over rows: thresholds, places and numbers of whole rows, with torch's bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.test_kernels import models, needs_compiler, run, runs, same
from plait.engine import compile_recipe
from plait.engine._fusion import Fusion
from plait.kernels import Bound, Graph, Kernel, Traced, Untraceable, build, source_of
from plait.tensors.ranks import relative_magnitudes, relative_ranks, row_places
from plait.tensors.selection import row_threshold

__all__ = ["runs"]  # the fixture

SHAPES = ((30, 500), (7001,), (7,), (), (16, 5, 3), (12, 1), (40, 129))

VARIANTS: list[Any] = [
    "model_breadcrumbs",
    "breadcrumbs_ties",
    [{"breadcrumbs": {"density": 0.9, "gamma": 0.3}}, "task_arithmetic"],
    "della",
    "della_linear",
    [{"magprune": {"rescale": "l1"}}, "task_arithmetic"],
    [{"magprune": {"by": "magnitude", "rescale": "none"}}, "ties"],
    [{"ties": {"scope": "row"}}],
    [{"ties": {"scope": "row", "vote": "frequency", "trim": "exact"}}],
]


@needs_compiler
@pytest.mark.parametrize("method", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loops_over_rows_give_torchs_bits(method: Any, dtype: torch.dtype, runs: list[Any]) -> None:
    states = models(dtype, *SHAPES)
    assert same(run(method, states, "always", seed=4), run(method, states, "never", seed=4))
    fusion = runs[0].main.fusion
    assert fusion.kernels and not fusion.refused
    assert all(kernel.proven for kernel in fusion._kernels.values())


@needs_compiler
@pytest.mark.parametrize("method", ["swa", "ema", "lawa"])
def test_averages_in_float64_are_compiled(method: str, runs: list[Any]) -> None:
    states = models(torch.bfloat16)
    base: dict[str, Any] = {"base": None}
    assert same(run(method, states, "always", **base), run(method, states, "never", **base))
    assert runs[0].main.fusion.kernels and not runs[0].main.fusion.refused


def rows(count: int, length: int) -> Tensor:
    """Rows with zeros, ties and numbers of every size."""
    rng = torch.Generator().manual_seed(length)
    values = torch.randn(count, length, generator=rng) * torch.exp(4 * torch.randn(count, length, generator=rng))
    values[0] = values[0].bfloat16()
    values[1] = values[1].sign()
    values[2] = 0.25
    values[3, ::2] = 0.0
    return values


def compiled(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """What the loop made of a function gives for some rows."""
    graph = Graph(row=values.shape[1])
    result = function(Traced.of(graph, graph.add("input", (), torch.float32, 0), 61, values.shape[1]))
    assert isinstance(result, Traced)
    graph.output = result.node
    made = build(source_of(graph, (torch.float32,), torch.float32, 1 << 16))
    assert made is not None
    bound = Bound(Kernel(made[0], (torch.float32,), torch.float32), graph)
    out = torch.empty_like(values)
    space = torch.empty(bound.room(values.numel()), dtype=torch.uint8)
    bound.run([values.data_ptr()], values.numel(), out.data_ptr(), 0, space=space.data_ptr())
    return out


@needs_compiler
@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 64, 65, 100, 896, 5000])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.999])
def test_thresholds_of_rows(length: int, share: float) -> None:
    values = rows(9, length)
    rank = int(share * length) + 1

    def kept(x: Tensor) -> Tensor:
        return x * (x.abs() >= row_threshold(x, rank)) + row_threshold(x, length)

    assert torch.equal(compiled(kept, values), kept(values))


@needs_compiler
@pytest.mark.parametrize("length", [1, 2, 3, 31, 896, 5000])
def test_places_in_rows(length: int) -> None:
    """Those of a stable sort, whichever bits the magnitudes differ in."""
    for values in (rows(9, length), rows(9, length).bfloat16().float(), torch.zeros(4, length)):
        assert torch.equal(compiled(row_places, values), row_places(values))
        assert torch.equal(compiled(relative_ranks, values), relative_ranks(values))
        assert torch.equal(compiled(relative_magnitudes, values), relative_magnitudes(values))


REFUSED: list[Callable[[Tensor], Any]] = [
    lambda x: x.sum(dim=-1, keepdim=True),
    lambda x: x.sign().sum(dim=0, keepdim=True),
    lambda x: torch.aminmax(x, dim=0, keepdim=True),
    lambda x: x.mean(dim=-1, keepdim=True),
    lambda x: x.softmax(dim=-1),
    lambda x: x.reshape(-1),
    lambda x: x.flatten(),
    lambda x: row_threshold(x.sign().sum(dim=-1, keepdim=True) > 0, 1),
    lambda x: x.mT,
]


@pytest.mark.parametrize("function", REFUSED)
def test_what_no_row_says_is_refused(function: Callable[[Tensor], Any]) -> None:
    graph = Graph(row=10)
    with pytest.raises(Untraceable):
        function(Traced.of(graph, graph.add("input", (), torch.float32, 0), 61, 10))


def test_rows_are_not_looked_for_in_blocks() -> None:
    graph = Graph()
    with pytest.raises(Untraceable):
        row_threshold(Traced.of(graph, graph.add("input", (), torch.float32, 0), 1 << 16), 3)


@needs_compiler
def test_a_loop_is_traced_once_for_tensors_that_answer_alike(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    """`breadcrumbs` asks for the shape and the length of a row, and for nothing else."""
    traced: list[str] = []
    follow = Fusion.follow
    monkeypatch.setattr(Fusion, "follow", lambda self, job, run: traced.append(job.name) or follow(self, job, run))
    states = models(torch.bfloat16, *[(12, 40)] * 5, (12, 41))
    run("model_breadcrumbs", states, "always")
    assert len(traced) == 2
    assert runs[0].main.fusion.kernels == 1


@needs_compiler
@pytest.mark.parametrize("method", ["sce", "karcher", "model_stock", [{"magprune": {"rescale": "l1"}}, "ties"]])
def test_inputs_are_read_once_where_they_can_be_kept(
    method: Any, monkeypatch: pytest.MonkeyPatch, runs: list[Any]
) -> None:
    """A tensor that is surveyed by itself stays in memory until it is merged; without room it is read again."""
    from plait.checkpoints import LazyTensor
    from plait.engine import Options, execute_in_memory

    read: dict[str, int] = {}
    for cls in {type(t) for t in plan_of(method).jobs[0].sources}:
        fill = cls.fill

        def counting(self: LazyTensor, start: int, stop: int, into: Any, fill: Any = fill) -> None:
            read[self.name] = read.get(self.name, 0) + stop - start
            fill(self, start, stop, into)

        monkeypatch.setattr(cls, "fill", counting)
    results = []
    for memory in (1 << 30, 24 << 20):
        read.clear()
        plan = plan_of(method)
        results.append(execute_in_memory(plan, Options(compile="always", threads=2, memory=memory)))
        (job,) = plan.jobs
        passes = read[job.name] / (job.entry.numel * len(job.sources))
        assert passes < 1.9 if memory == 1 << 30 else passes >= 1.9
    assert same(*results)


def plan_of(method: Any) -> Any:
    states = models(torch.bfloat16, (900, 1000))
    content = {"method": method, "base": "memory:b", "experts": {f"e{i}": f"memory:{i}" for i in range(3)}}
    given = {"memory:b": states[0], **{f"memory:{i}": s for i, s in enumerate(states[1:])}}
    return compile_recipe(content, state_dicts=given)
