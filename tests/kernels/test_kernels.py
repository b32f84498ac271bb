"""Compiled loops: the same bits as torch, an honest fallback everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from loop_cases import VARIANTS, State, models, same
from plait.engine import Options, compile_recipe, execute_in_memory
from plait.engine import _run as execution
from plait.errors import NonFiniteError
from plait.kernels import Graph, Traced, Untraceable, build, compiler, source_of
from plait.kernels import _build as building

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The runs that are made during a test."""
    made: list[Any] = []
    original = execution.Run.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(execution.Run, "__init__", init)
    return made


def run(method: Any, states: list[State], mode: str, **recipe: Any) -> State:
    content = {"method": method, "base": "memory:b", "experts": {f"e{i}": f"memory:{i}" for i in range(3)}, **recipe}
    given = {"memory:b": states[0], **{f"memory:{i}": s for i, s in enumerate(states[1:])}}
    return execute_in_memory(compile_recipe(content, state_dicts=given), Options(compile=mode, threads=2))  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.parametrize(("method", "more"), VARIANTS, ids=[str(v[0]) for v in VARIANTS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loops_give_torchs_bits(method: Any, more: dict[str, Any], dtype: torch.dtype, runs: list[Any]) -> None:
    states = models(dtype)
    assert same(run(method, states, "always", **more), run(method, states, "never", **more))
    fusion = runs[0].main.fusion
    assert fusion.kernels and not fusion.refused
    assert all(kernel.proven for kernel in fusion._kernels.values())
    assert runs[1].main.fusion is None


@needs_compiler
def test_two_rounds_in_one_pass_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tensors: the sample's windows hold the ranks, and the thresholds are those of two full rounds."""
    from plait.engine import _rounds

    outcomes: list[bool] = []
    original = _rounds.hit

    def hit(*args: Any) -> Any:
        found = original(*args)
        outcomes.append(found is not None)
        return found

    monkeypatch.setattr(_rounds, "hit", hit)
    states = models(torch.bfloat16, (1500, 1500), (64,))
    for method in ("ties", [{"breadcrumbs": {"scope": "tensor"}}, "task_arithmetic"], "sce", "localize_stitch"):
        outcomes.clear()
        assert same(run(method, states, "always"), run(method, states, "never"))
        assert outcomes == [True], method


@needs_compiler
def test_a_rank_outside_the_windows_costs_only_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that misleads: the rounds are run one by one."""
    from plait.engine import _rounds

    outcomes: list[Any] = []
    original = _rounds.hit
    monkeypatch.setattr(_rounds, "hit", lambda *args: outcomes.append(original(*args)) or outcomes[-1])
    monkeypatch.setattr(_rounds, "_CHUNK", 1 << 12)
    states = models(torch.float32, (2048, 2048))
    name = next(iter(states[0]))
    for state in states[1:]:  # what is sampled is a thousandth of the rest
        flat = state[name].view(-1) - states[0][name].view(-1)
        stride = (1 << 12) * 16
        for start in range(0, flat.numel(), stride):
            flat[start : start + (1 << 12)] *= 1e-3
        state[name] = (states[0][name].view(-1) + flat).view(2048, 2048)
    assert same(run("ties", states, "always"), run("ties", states, "never"))
    assert outcomes == [None]


@needs_compiler
@pytest.mark.parametrize("mode", ["always", "never"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_what_is_not_finite_is_named_either_way(mode: str, method: str) -> None:
    states = models(torch.bfloat16)
    states[2]["layers.1.w.weight"][69_999] = float("nan")
    with pytest.raises(NonFiniteError, match=r"layers\.1\.w\.weight.*flat index 69999"):
        run(method, states, mode)


@needs_compiler
@pytest.mark.parametrize("mode", ["always", "never"])
def test_an_overflow_is_named_either_way(mode: str) -> None:
    states = [{k: v * 0 + 6e4 for k, v in state.items()} for state in models(torch.float32)]
    with pytest.raises(NonFiniteError, match="does not fit into"):
        run([{"linear": {"normalize": False}}], states, mode, dtype="float16")


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    building.compiler.cache_clear()
    monkeypatch.setattr(building, "compiler", lambda: None)
    states = models()
    assert same(run("ties", states, "always"), run("ties", states, "never"))
    assert runs[0].main.fusion.refused.keys() == {"no compiler"}


@needs_compiler
def test_a_loop_that_differs_from_torch_is_not_used(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    """The first block of every loop is compared; here the loop is made to round wrongly."""
    from plait.engine import _fusion

    def wrong(*args: Any) -> str:
        return source_of(*args).replace("= as_bits(v", "= 0x10000u + as_bits(v")

    monkeypatch.setattr(_fusion, "source_of", wrong)
    states = models()
    assert same(run("linear", states, "always"), run("linear", states, "never"))
    assert any("differs from torch" in reason for reason in runs[0].main.fusion.refused)


@pytest.fixture
def traced() -> Iterator[Traced]:
    graph = Graph()
    yield Traced.of(graph, graph.add("input", (), torch.float32, 0), 1 << 16)


REFUSED: list[Callable[[Tensor], Any]] = [
    lambda x: x.sum(),
    lambda x: bool((x > 0).any()),
    lambda x: float(x[0]),
    lambda x: x[:3],
    lambda x: x.exp(),
    lambda x: x.sqrt(),
    lambda x: torch.stack([x, x]),
    lambda x: x.double(),
    lambda x: x.reshape(-1, 2),
    lambda x: x + torch.ones(1 << 16),
    lambda x: x.sort(),
    lambda x: x.cumsum(0),
]


@pytest.mark.parametrize("function", REFUSED)
def test_what_is_not_pointwise_is_refused(function: Callable[[Tensor], Any], traced: Traced) -> None:
    with pytest.raises(Untraceable):
        function(traced)


POINTWISE: list[Callable[[Tensor], Tensor]] = [
    lambda x: 2.0 / x,
    lambda x: 1.0 - x,
    lambda x: (x - 0.5).abs(),
    lambda x: x.clone().add_(x, alpha=0.3).mul_(x).sub_(x, alpha=3.0),
    lambda x: torch.addcmul(x, x, x),
    lambda x: torch.where(x > 0.25, x, -x),
    lambda x: x * (x >= 0.5) * ~(x == 0),
    lambda x: torch.maximum(x, x * x).clamp(-0.5, 0.5),
    lambda x: torch.minimum(x, 1.0 - x).clamp_min(0.1),
    lambda x: x.sign() + (x**2).square(),
    lambda x: torch.zeros_like(x) + ((x > 0) & (x < 1)).float() + torch.full_like(x, 0.1),
    lambda x: (torch.zeros_like(x, dtype=torch.int32) + (x > 0) + (x > 1) >= 2) * x,
    lambda x: x / 3.0,
    lambda x: x / (x + 2.5),
]


@needs_compiler
@pytest.mark.parametrize("function", POINTWISE)
@pytest.mark.parametrize("output", [torch.float32, torch.bfloat16])
def test_every_operation_rounds_as_torch_does(function: Callable[[Tensor], Tensor], output: torch.dtype) -> None:
    from plait.kernels import Bound, Kernel

    graph = Graph()
    result = function(Traced.of(graph, graph.add("input", (), torch.float32, 0), 1 << 16))
    assert isinstance(result, Traced)
    graph.output = result.node
    made = build(source_of(graph, (torch.float32,), output, 1 << 16))
    assert made is not None
    values = torch.cat([torch.linspace(-3, 3, 4099), torch.tensor([0.0, -0.0, 1e-40, 3e38])])
    out = torch.empty(values.numel(), dtype=output)
    Bound(Kernel(made[0], (torch.float32,), output), graph).run([values.data_ptr()], values.numel(), out.data_ptr(), 0)
    expected = function(values).to(output)
    assert torch.equal(out.nan_to_num(7.0), expected.nan_to_num(7.0))


@needs_compiler
def test_libraries_are_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    graph = Graph()
    x = Traced.of(graph, graph.add("input", (), torch.float32, 0), 8)
    graph.output = (x * 1.2345).node
    source = source_of(graph, (torch.float32,), torch.float32, 1 << 16)
    first, second = build(source), build(source)
    assert first is not None and second is not None and (first[1], second[1]) == (True, False)
    (library,) = (tmp_path / "plait" / "kernels").iterdir()
    library.write_bytes(b"not a library")
    graph.output = (x * 1.2345 + 1.0).node
    assert build(source_of(graph, (torch.float32,), torch.float32, 1 << 16)) is not None


def test_the_result_says_how_it_was_computed(tmp_path: Path) -> None:
    states = models()
    from safetensors.torch import save_file

    for i, state in enumerate(states[1:]):
        save_file(state, tmp_path / f"e{i}.safetensors")
    recipe = {"method": "linear", "experts": {f"e{i}": str(tmp_path / f"e{i}.safetensors") for i in range(3)}}
    always = plait.merge(recipe, tmp_path / "a", compile="always")
    never = plait.merge(recipe, tmp_path / "b", compile="never")
    assert always.path["kernels"] == (1 if compiler() is not None else 0) and never.path["kernels"] == 0
    assert {"survey", "merge", "finish"} <= always.timings.wall.keys()
    assert always.digests == never.digests
