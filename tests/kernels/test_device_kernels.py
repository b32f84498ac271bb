"""Loops for devices: the bits of torch there, counted and added up there, and torch where a loop will not do.

The source that a GPU would get is compiled here, for one thread after the other (`emulated_cuda`), behind a device that
pretends to be one. On a real GPU the same is done by the real thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from emulated_cuda import CXX, Emulated, build_emulated, emulate
from loop_cases import VARIANTS, State, models, same
from plait.architectures import Role
from plait.engine import Options, compile_recipe, execute_in_memory
from plait.engine import _run as execution
from plait.errors import NonFiniteError
from plait.kernels import BUILDERS, Graph, Untraceable
from plait.kernels._cuda import cuda_source
from plait.kernels._dialect import Dialect, dialect
from plait.methods import Method, Subject, methods
from plait.testing import _count, _merge, sample_models
from pretended_device import DEVICE

needs_cxx = pytest.mark.skipif(CXX is None, reason="there is no C++ compiler here")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MATRIX = Subject("model.layers.0.mlp.up_proj.weight", (12, 9), Role("mlp"))
#: those that have loops: matrices that are seen whole have none
METHODS = [cls for cls in methods().values() if not cls.adapters_only and cls(**cls.example).unit(MATRIX) != "tensor"]
BLOCK = 1 << 16


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Emulated]:
    return emulate(monkeypatch, DEVICE.type)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    original = execution.Run.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        found.append(self)

    monkeypatch.setattr(execution.Run, "__init__", init)
    return found


def merge(method: Any, states: list[State], mode: str, device: str, **recipe: Any) -> State:
    content = {"method": method, "base": "memory:b", "experts": {f"e{i}": f"memory:{i}" for i in range(3)}, **recipe}
    given = {"memory:b": states[0], **{f"memory:{i}": s for i, s in enumerate(states[1:])}}
    options = Options(compile=mode, threads=2, device=device, block=BLOCK)  # type: ignore[arg-type]
    return execute_in_memory(compile_recipe(content, state_dicts=given), options)


def refusals(runs: list[Any]) -> dict[str, int]:
    return {reason: n for run in runs for reason, n in run.path()["blocks"].items()}


@needs_cxx
@pytest.mark.parametrize(("method", "more"), VARIANTS, ids=[str(v[0]) for v in VARIANTS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loops_give_torchs_bits_there(
    method: Any, more: dict[str, Any], dtype: torch.dtype, made: list[Emulated], runs: list[Any]
) -> None:
    states = models(dtype)
    wanted = merge(method, states, "never", "pretended", **more)
    assert not made
    found = merge(method, states, "always", "pretended", **more)
    assert same(found, wanted)
    assert not refusals(runs), "some of it ran in torch"
    assert runs[-1].path()["kernels"] == len(made) and all(kernel.calls for kernel in made)


@needs_gpu
@pytest.mark.parametrize(("method", "more"), VARIANTS, ids=[str(v[0]) for v in VARIANTS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loops_give_torchs_bits_on_a_gpu(
    method: Any, more: dict[str, Any], dtype: torch.dtype, runs: list[Any]
) -> None:
    states = models(dtype)
    wanted = merge(method, states, "never", "cuda", **more)
    assert same(merge(method, states, "always", "cuda", **more), wanted)
    assert not refusals(runs), "some of it ran in torch"
    assert runs[-1].path()["kernels"]


@needs_cxx
@pytest.mark.parametrize("cls", METHODS, ids=[cls.name for cls in METHODS])
def test_every_method_does_the_same_with_loops(cls: type[Method], made: list[Emulated]) -> None:
    base, experts = sample_models(_count(cls))
    for dtype in (torch.bfloat16, torch.float16):
        stored = [{name: tensor.to(dtype) for name, tensor in state.items()} for state in (base, *experts)]
        plain = _merge(cls, stored[0], stored[1:], seed=3, device="pretended", block=BLOCK, compile="never")
        loops = _merge(cls, stored[0], stored[1:], seed=3, device="pretended", block=BLOCK, compile="always")
        assert same(loops, plain)


@needs_gpu
@pytest.mark.parametrize("cls", METHODS, ids=[cls.name for cls in METHODS])
def test_every_method_does_the_same_with_loops_on_a_gpu(cls: type[Method]) -> None:
    base, experts = sample_models(_count(cls))
    for dtype in (torch.bfloat16, torch.float16):
        stored = [{name: tensor.to(dtype) for name, tensor in state.items()} for state in (base, *experts)]
        plain = _merge(cls, stored[0], stored[1:], seed=3, device="cuda", compile="never")
        assert same(_merge(cls, stored[0], stored[1:], seed=3, device="cuda", compile="always"), plain)


@needs_cxx
def test_two_rounds_in_one_pass(made: list[Emulated], runs: list[Any]) -> None:
    """A model large enough for a sample: windows instead of coarse counts."""
    states = models(torch.bfloat16, (1500, 1000), (1000, 700))
    assert same(merge("ties", states, "always", "pretended"), merge("ties", states, "always", "cpu"))
    assert any("window" in sink.kind for run in runs[:1] for sink in _sinks(run)), "the rounds were run apart"


def _sinks(run: Any) -> Iterator[Any]:
    for key in run.main.fusion._kernels:
        yield from key[0][1]


@needs_cxx
def test_rows_are_left_to_torch(made: list[Emulated], runs: list[Any]) -> None:
    states = models(torch.bfloat16)
    method = [{"breadcrumbs": {"scope": "row"}}, "task_arithmetic"]
    assert same(merge(method, states, "always", "pretended"), merge(method, states, "never", "pretended"))
    assert any("rows" in reason for reason in refusals(runs[:1]))


@needs_cxx
@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("which", [0, 2])
def test_what_is_not_finite_is_named(method: str, which: int, made: list[Emulated]) -> None:
    states = models(torch.bfloat16)
    states[which]["layers.0.w.weight"].view(-1)[140_000] = float("nan")
    if method == "linear" and which == 0:
        assert merge(method, states, "always", "pretended")
        return
    with pytest.raises(NonFiniteError, match=r"layers\.0\.w\.weight"):
        merge(method, states, "always", "pretended")


@needs_cxx
def test_a_result_that_overflows_is_named(made: list[Emulated]) -> None:
    states = models(torch.bfloat16)
    states[1]["layers.1.w.weight"][69_000] = states[2]["layers.1.w.weight"][69_000] = 3e38
    with pytest.raises(NonFiniteError, match=r"layers\.1\.w\.weight"):
        merge([{"task_arithmetic": {"lambda": 9.0}}], states, "always", "pretended")


@needs_cxx
def test_a_loop_that_rounds_otherwise_is_dropped(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    """A compiler that gets a bit wrong costs time, not correctness."""

    def wrong(source: str, passed: Any, device: torch.device) -> Emulated:
        return build_emulated(source.replace("0x7fffu", "0x7ff0u"), passed, device)

    monkeypatch.setitem(BUILDERS, DEVICE.type, wrong)
    states = models(torch.bfloat16)
    assert same(merge("linear", states, "always", "pretended"), merge("linear", states, "never", "pretended"))
    assert any("differs from torch" in reason for reason in refusals(runs))


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch, runs: list[Any]) -> None:
    monkeypatch.setitem(BUILDERS, DEVICE.type, lambda *_: None)
    states = models(torch.bfloat16)
    assert same(merge("linear", states, "always", "pretended"), merge("linear", states, "never", "pretended"))
    assert set(refusals(runs[:1])) == {"no compiler"}


def test_a_device_that_rounds_in_an_unknown_way_computes_in_torch(
    monkeypatch: pytest.MonkeyPatch, made: list[Emulated], runs: list[Any]
) -> None:
    monkeypatch.setattr("plait.kernels._dialect._agrees", lambda *_: False)
    dialect.cache_clear()
    states = models(torch.bfloat16)
    found = merge("linear", states, "always", "pretended")
    dialect.cache_clear()
    assert not made and same(found, merge("linear", states, "never", "pretended"))
    assert set(refusals(runs[:1])) == {"division as torch computes it on pretended"}


def test_the_dialect_of_a_device_is_found_by_asking() -> None:
    """Torch on the processor divides, fuses both sums, and takes either zero."""
    here = dialect(torch.device("cpu"))
    assert not here.inverse and here.fused_number and not here.positive
    assert dialect(DEVICE) == here


def _graph(op: str, *, scalar: bool) -> Graph:
    graph = Graph()
    x = graph.add("input", (), torch.float32, 0)
    y = graph.number(3.0, torch.float32) if scalar else graph.add("input", (), torch.float32, 1)
    graph.output = graph.add(op, (x, y, x) if op == "fma" else (x, y), torch.float32)
    return graph


@pytest.mark.parametrize(
    ("op", "scalar", "spoken", "wanted"),
    [
        ("div", True, Dialect(True, True, True, True), "v0 * (float)(1.0 / passed.numbers[0])"),
        ("div", True, Dialect(False, True, True, True), "v0 / v1"),
        ("div", False, Dialect(True, True, True, True), "v0 / v1"),
        ("fma", True, Dialect(True, False, True, True), "v0 + v0 * v1"),
        ("fma", True, Dialect(True, True, False, True), "__builtin_fmaf(v0, v1, v0)"),
        ("fma", False, Dialect(True, True, False, True), "v0 + v0 * v1"),
        ("maximum", False, Dialect(True, True, True, True), "fmaxf(v0, v1)"),
        ("maximum", False, Dialect(True, True, True, False), "v0 > v1 ? v0 : v1"),
    ],
)
def test_a_loop_speaks_the_dialect(op: str, scalar: bool, spoken: Dialect, wanted: str) -> None:
    graph = _graph(op, scalar=scalar)
    source = cuda_source(graph, (torch.float32,) * (2 - scalar), torch.float32, 1 << 16, spoken)
    assert f"v2 = {wanted};" in source


def test_more_models_than_a_launch_can_be_told_of() -> None:
    graph = Graph()
    inputs = [graph.add("input", (), torch.float32, i) for i in range(600)]
    graph.output = inputs[-1]
    with pytest.raises(Untraceable, match="more models"):
        cuda_source(graph, (torch.float32,) * 600, torch.float32, 1 << 16, Dialect(True, True, True, True))
