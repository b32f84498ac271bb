"""Arithmetic on a device: the same results, read and sent ahead of time, and errors that name the tensor.

A pretended device (`pretended_device`) stands in for a GPU: it refuses what a GPU refuses and computes what the
processor computes, so that results are compared to the bit. What a real GPU gives is compared too, where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from models import family, save_family, tree
from plait.engine import Options, compile_recipe, execute
from plait.engine._device import Lane, at_home
from plait.errors import MemoryBudgetError, NonFiniteError, RecipeError
from plait.methods import Method, methods
from plait.methods.linear import Linear
from plait.testing import _count, _merge, sample_models
from pretended_device import DEVICE, MODULE, Remote

METHODS = [cls for cls in methods().values() if not cls.adapters_only]
WHOLE_MODEL = {"method": "ties"}
CHAIN = {"method": [{"dare": {"density": 0.4}}, {"ties": {"scope": "tensor"}}], "seed": 3}
BY_ROWS = {"method": "ties", "parameters": {"scope": "row"}}


def _models(dtype: torch.dtype, cls: type[Method]) -> tuple[Any, list[Any]]:
    base, experts = sample_models(_count(cls))
    stored = [{name: tensor.to(dtype) for name, tensor in state.items()} for state in (base, *experts)]
    return stored[0], stored[1:]


@pytest.mark.parametrize("cls", METHODS, ids=[cls.name for cls in METHODS])
def test_a_method_does_elsewhere_what_it_does_here(cls: type[Method]) -> None:
    base, experts = _models(torch.bfloat16, cls)
    here = _merge(cls, base, experts, seed=3, compile="never")
    there = _merge(cls, base, experts, seed=3, device="pretended", block=1 << 16)
    for name, wanted in here.items():
        assert torch.equal(there[name], wanted), f"{name} differs"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cls", METHODS, ids=[cls.name for cls in METHODS])
def test_a_method_does_on_a_gpu_nearly_what_it_does_here(cls: type[Method]) -> None:
    base, experts = _models(torch.float32, cls)
    here = _merge(cls, base, experts, seed=3)
    there = _merge(cls, base, experts, seed=3, device="cuda")
    for name, wanted in here.items():
        update = float((wanted - base[name]).norm())
        assert float((there[name] - wanted).norm()) <= 1e-3 * update + 1e-5, f"{name} differs"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models with tensors of several blocks, in bfloat16."""
    base, experts = family(3, torch.bfloat16, vocab=9001)
    return save_family(tmp_path_factory.mktemp("wide"), base, experts)


def _weights(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("recipe", [WHOLE_MODEL, CHAIN, BY_ROWS, {"method": "slerp"}, {"method": "tsv_merge"}])
def test_files_are_the_same_whatever_the_threads(
    wide: dict[str, Any], tmp_path: Path, recipe: dict[str, Any], threads: int
) -> None:
    models = dict(wide)
    if recipe["method"] == "slerp":
        models = {"experts": dict(list(wide["experts"].items())[:2])}
    plait.merge({**recipe, **models}, tmp_path / "here", compile="never")
    used = len(MODULE.used)
    plait.merge({**recipe, **models}, tmp_path / "there", device="pretended", threads=threads, block=1 << 16)
    assert _weights(tmp_path / "there") == _weights(tmp_path / "here")
    assert len(MODULE.used) > used  # on streams of its threads
    assert plait.reproduce(tmp_path / "there").identical  # its card names no device


def test_nested_recipes_adapters_and_copies(wide: dict[str, Any], tmp_path: Path) -> None:
    recipe = {
        "method": "task_arithmetic",
        "base": wide["base"],
        "experts": {
            "inner": {"model": {**WHOLE_MODEL, **wide}},
            "rows": {"model": {**BY_ROWS, **wide}, "weight": 0.5},
            "plain": wide["experts"]["e1"],
        },
        "copy": [{"role": "norm", "from": "plain"}],
    }
    plait.merge(recipe, tmp_path / "here", compile="never")
    plait.merge(recipe, tmp_path / "there", device="pretended", threads=2, block=1 << 16)
    assert _weights(tmp_path / "there") == _weights(tmp_path / "here")


def test_a_killed_run_goes_on(wide: dict[str, Any], tmp_path: Path) -> None:
    plan, options = compile_recipe({**WHOLE_MODEL, **wide}), Options(device="pretended", threads=1, block=1 << 16)

    class Killed(plait.engine.Silent):
        seen = 0

        def advance(self, count: int) -> None:
            self.seen += count
            if self.seen > 0.9 * plan.read_bytes:  # in the middle of merging, after the surveys
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, tmp_path / "there", options, Killed())
    found = execute(compile_recipe({**WHOLE_MODEL, **wide}), tmp_path / "there", options)
    assert found.resumed
    execute(plan, tmp_path / "here", Options(compile="never"))
    assert _weights(tmp_path / "there") == _weights(tmp_path / "here")


def test_nan_is_found_there_and_named_here() -> None:
    base, experts = family(3, torch.bfloat16, vocab=9001)
    experts[1]["model.embed_tokens.weight"].view(-1)[200_001] = float("nan")
    for method in ("linear", "ties"):  # in a merge, in a survey
        with pytest.raises(NonFiniteError, match=r"model.embed_tokens.weight.*NaN.*flat index 200001"):
            plait.merge_state_dicts(method, experts, base, device="pretended", block=1 << 16)
    found = plait.merge_state_dicts(
        "linear", experts, device="pretended", block=1 << 16, recipe={"allow_nonfinite": True}
    )
    assert int(found["model.embed_tokens.weight"].isnan().sum()) == 1


def test_what_does_not_fit_the_dtype_is_named() -> None:
    experts = [{"w": torch.full((70_000,), 60_000.0)}, {"w": torch.full((70_000,), 80_000.0)}]
    with pytest.raises(NonFiniteError, match=r"'w' does not fit into torch.float16: its values reach 7e\+04"):
        plait.merge_state_dicts("linear", experts, dtype="float16", device="pretended", block=1 << 16)


def test_the_memory_of_a_device_is_part_of_the_plan(
    wide: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "free", 8 << 20)
    execute(compile_recipe({**WHOLE_MODEL, **wide}), tmp_path / "there", Options(device="pretended", threads=2))
    monkeypatch.setattr(MODULE, "free", 3 << 20)
    with pytest.raises(MemoryBudgetError, match=r"pretended has room for 3 MiB now.*--device cpu"):
        execute(compile_recipe({"method": "tsv_merge", **wide}), tmp_path / "no", Options(device="pretended"))
    with pytest.raises(MemoryBudgetError, match=r"the budget is 1 MiB\. Pass --memory"):
        execute(
            compile_recipe({"method": "tsv_merge", **wide}),
            tmp_path / "no",
            Options(device="pretended", memory=1 << 20),
        )
    assert not (tmp_path / "no").exists()


def test_a_full_device_is_an_error_with_a_name_and_keeps_what_is_done(
    wide: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Linear.merge

    def full(self: Linear, group: Any) -> Tensor:
        if group.name == "model.layers.2.mlp.down_proj.weight":
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …")
        return plain(self, group)

    monkeypatch.setattr(Linear, "merge", full)
    recipe, options = {"method": "linear", **wide}, Options(device="pretended", threads=1)
    with pytest.raises(MemoryBudgetError) as raised:
        execute(compile_recipe(recipe), tmp_path / "out", options)
    message = str(raised.value)
    assert message.startswith("pretended ran out of memory at tensor 'model.layers.2.mlp.down_proj.weight' [32, 48]: ")
    assert "Tried to allocate 20.00 MiB." in message and "--threads 1" in message and "GPU 0" not in message
    monkeypatch.setattr(Linear, "merge", plain)
    assert execute(compile_recipe(recipe), tmp_path / "out", options).resumed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "unknown device 'gpu'; use cpu, cuda or cuda:N"),
        ("meta", "no use for a device of this kind"),
        ("pretended:3", "there are only 1; numbers begin with 0"),
        pytest.param(
            "cuda",
            "sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_devices_that_will_not_do(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Options(device=name).check()


def test_two_slots_take_turns_and_wait_for_their_own_copies() -> None:
    lane = Lane(DEVICE)
    with lane.work():
        first, second = lane.slot("w"), lane.slot("w")
        assert first is not second and lane.slot("w") is first
        waited: list[int] = []
        for slot, number in ((first, 1), (second, 2)):
            room = slot.room(8)
            room.copy_(torch.full((8,), number, dtype=torch.uint8))
            there = slot.send(room)
            assert isinstance(there, Remote) and there.cpu().tolist() == [number] * 8
            slot._busy.synchronize = lambda number=number: waited.append(number)
        second.room(4)
        assert waited == [2]
        first.room(100)
        second.room(1)
        assert waited == [2, 1]
        elsewhere = first.send(torch.arange(3.0))  # memory that is not the slot's goes through it
        assert elsewhere.cpu().tolist() == [0.0, 1.0, 2.0]


def test_summaries_come_home_in_their_form() -> None:
    from plait.tensors.sums import Each

    there = torch.arange(3.0, device="pretended")
    found: Mapping[str, Any] = at_home({"a": [there, 2], "b": (there, Each((1.5, 2.5))), "c": None})
    assert isinstance(found["a"], list) and isinstance(found["b"], tuple) and found["c"] is None
    assert type(found["a"][0]) is Tensor and found["a"][0].tolist() == [0.0, 1.0, 2.0]
    assert found["b"][1] == Each((1.5, 2.5))


def test_a_device_gets_few_threads_unless_more_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from plait import _api
    from plait.engine import _options

    monkeypatch.setattr(_options.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert _api._options("1GiB", None, "cpu").threads == 16
    assert _api._options("1GiB", None, "pretended").threads == 4
    assert _api._options("1GiB", 9, "pretended").threads == 9
