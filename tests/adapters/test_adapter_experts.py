"""Adapters as experts of every method: equal to the dense models they stand for, in blocks, threads and dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import base_of, change, lora, save_lora, save_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import plait
from models import read, tree
from plait.methods import Combiner, external, methods

State = dict[str, Tensor]
MODULES = {
    "model.layers.0.self_attn.q_proj": (24, 16),
    "model.layers.0.mlp.down_proj": (16, 40),
    "model.layers.1.self_attn.q_proj": (24, 16),
}
SHAPES = {f"{module}.weight": shape for module, shape in MODULES.items()}
COMBINERS = sorted(n for n, cls in methods().items() if issubclass(cls, Combiner) and not cls.adapters_only)


def family(home: Path, count: int = 3, dtype: torch.dtype = torch.float32) -> tuple[str, list[str], list[str], State]:
    """A base, adapters of different ranks on it, and the dense models they make, in float64."""
    base = base_of(SHAPES, dtype=dtype)
    save_model(home / "base", base)
    adapters, dense = [], []
    for i in range(count):
        state = lora(MODULES, rank=2 + 2 * i, seed=i + 1)
        adapters.append(str(save_lora(home / f"lora{i}", state, r=2 + 2 * i, lora_alpha=3)))
        full = {k: v.double() + change(state, k.removesuffix(".weight"), 3 / (2 + 2 * i)) for k, v in base.items()}
        save_file(full, home / f"dense{i}.safetensors")
        dense.append(str(home / f"dense{i}.safetensors"))
    return str(home / "base"), adapters, dense, base


def run(out: Path, method: Any, base: Any, experts: list[str] | dict[str, Any], **recipe: Any) -> State:
    options = {key: recipe.pop(key) for key in ("threads", "block", "compile") if key in recipe}
    content = {"method": method, "experts": experts, **({"base": base} if base else {}), **recipe}
    plait.merge(content, out, **{"threads": 1, **options})
    return read(out)


@pytest.mark.parametrize("name", COMBINERS)
def test_adapters_are_the_models_they_stand_for(tmp_path: Path, name: str) -> None:
    """Merging adapters is merging what they make of the base."""
    cls = methods()[name]
    count = max(cls.min_experts, min(3, cls.max_experts or 3))
    base, adapters, dense, origin = family(tmp_path, count)
    step = [{name: {external(k): v for k, v in cls.example.items()}}]
    ours = run(tmp_path / "ours", step, base, adapters)
    theirs = run(tmp_path / "theirs", step, base, dense, dtype="float32")
    for key, wanted in theirs.items():
        size = float((wanted - origin[key]).double().norm())
        off = float((ours[key].double() - wanted.double()).norm())
        assert off <= 2e-4 * size + 2.0**-22 * float(wanted.norm()), f"{key}: off by {off:.3g}, update {size:.3g}"


def test_blocks_and_threads_are_invisible(tmp_path: Path) -> None:
    """The same bits however the changes are computed."""
    modules = {"model.layers.0.mlp.down_proj": (300, 700), "model.layers.1.mlp.down_proj": (700, 300)}
    base = save_model(tmp_path / "base", base_of({f"{m}.weight": s for m, s in modules.items()}))
    experts = [str(save_lora(tmp_path / f"l{i}", lora(modules, seed=i))) for i in range(2)]
    for method in ("ties", "linear", ["dare", "task_arithmetic"]):
        label = method if isinstance(method, str) else "dare"
        one = run(tmp_path / f"{label}1", method, str(base), experts, block=1 << 20)
        other = run(tmp_path / f"{label}2", method, str(base), experts, block=1 << 16, threads=3, compile="always")
        assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_low_precision_base_keeps_its_dtype_and_the_change_its_digits(tmp_path: Path) -> None:
    """The change is not rounded before it is merged; the result is, once."""
    base, adapters, dense, origin = family(tmp_path, dtype=torch.bfloat16)
    for method in ("task_arithmetic", "linear"):
        ours = run(tmp_path / method, method, base, adapters)
        theirs = run(tmp_path / f"{method}2", method, base, dense, dtype="bfloat16")
        assert all(t.dtype == torch.bfloat16 for t in ours.values())
        assert all(torch.equal(ours[k], theirs[k]) for k in origin)


def test_ways_to_name_an_adapter(tmp_path: Path) -> None:
    """A folder, a file, MODEL+ADAPTER and a mapping say the same."""
    base, (first, second, _), _, _ = family(tmp_path)
    wanted = run(tmp_path / "0", "task_arithmetic", base, [first, second])
    forms: list[list[Any]] = [
        [f"{first}/adapter_model.safetensors", {"adapter": second}],
        [f"{base}+{first}", {"model": base, "adapter": second, "weight": 1.0}],
        [{"model": first}, f"{base}+{second}/adapter_model.safetensors"],
    ]
    for number, experts in enumerate(forms, 1):
        ours = run(tmp_path / str(number), "task_arithmetic", base, experts)
        assert all(torch.equal(ours[k], wanted[k]) for k in wanted)


def test_without_a_base_of_the_recipe(tmp_path: Path) -> None:
    """A model with an adapter on it is a model."""
    base, (first, second, _), dense, _ = family(tmp_path)
    ours = run(tmp_path / "ours", "slerp", None, [f"{base}+{first}", f"{base}+{second}"], parameters={"t": 0.3})
    theirs = run(tmp_path / "theirs", "slerp", None, dense[:2], parameters={"t": 0.3}, dtype="float32")
    assert all(torch.allclose(ours[k], theirs[k], rtol=1e-6, atol=1e-7) for k in theirs)


def test_adapters_beside_full_models(tmp_path: Path) -> None:
    """Changes and weights in one merge, in either kind of tensor access."""
    base, (first, _, _), dense, origin = family(tmp_path)
    rounded = []
    for number, file in enumerate(dense[:2]):
        save_file({k: v.float() for k, v in load_file(file).items()}, tmp_path / f"{number}.safetensors")
        rounded.append(str(tmp_path / f"{number}.safetensors"))
    for method in ("ties", "tsv_merge", "linear"):
        ours = run(tmp_path / f"{method}1", method, base, [first, rounded[1]])
        theirs = run(tmp_path / f"{method}2", method, base, rounded)
        for key, wanted in theirs.items():
            size = float((wanted - origin[key]).norm())
            assert float((ours[key] - wanted).norm()) <= 1e-4 * size, (method, key)


def test_what_no_adapter_changes_is_the_bases_bytes(tmp_path: Path) -> None:
    """And is said so."""
    base = base_of({**SHAPES, "model.norm.weight": (16,), "steps": (3,)}, dtype=torch.bfloat16)
    base["steps"] = torch.tensor([1, 2, 3])
    folder = save_model(tmp_path / "base", base)
    module = next(iter(MODULES))
    adapter = save_lora(tmp_path / "lora", lora({module: MODULES[module]}))
    recipe = {"method": "ties", "base": str(folder), "experts": [str(adapter)]}
    plan = plait.plan(recipe)
    assert any("3 tensors are changed by no adapter" in note for note in plan.notes)
    assert [job.name for job in plan.jobs if not job.copies] == [f"{module}.weight"]
    plait.merge(plan, tmp_path / "out")
    ours = read(tmp_path / "out")
    assert all(torch.equal(ours[k], v) for k, v in base.items() if k != f"{module}.weight")


def test_adapters_are_part_of_the_provenance(tmp_path: Path) -> None:
    """Their own tensors are hashed, and the merge can be reproduced."""
    base, adapters, _, _ = family(tmp_path)
    run(tmp_path / "out", "ties", base, adapters)
    import json

    inputs = json.loads((tmp_path / "out" / "plait.json").read_text())["inputs"]
    assert set(inputs) == {"base", "expert0", "expert1", "expert2"}
    assert [inputs[f"expert{i}"]["tensors"] for i in range(3)] == [6, 6, 6]
    before = tree(tmp_path / "out")
    plait.reproduce(tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_adapters_stand_in_nested_recipes(tmp_path: Path) -> None:
    """On a base that is itself a merge."""
    _, adapters, dense, _ = family(tmp_path)
    inner = {"method": "linear", "experts": [dense[0], dense[1]], "dtype": "float32"}
    ours = run(tmp_path / "ours", "task_arithmetic", inner, [adapters[2]])
    middle = run(tmp_path / "middle", "linear", None, dense[:2], dtype="float32")
    for key, weight in middle.items():
        state = read(Path(adapters[2]))
        wanted = weight.double() + change(state, key.removesuffix(".weight"), 3 / 6)
        assert torch.allclose(ours[key].double(), wanted, rtol=1e-6, atol=1e-7)


def test_other_commands_know_adapters(tmp_path: Path) -> None:
    """A comparison of what experts changed, and the check before a merge."""
    from plait.reports import check, diff

    base, adapters, dense, _ = family(tmp_path)
    ours = diff(base, {"a": adapters[0], "b": adapters[1]}).by_role()["all"]
    theirs = diff(base, {"a": dense[0], "b": dense[1]}).by_role()["all"]
    assert ours["experts"]["a"]["norm"] == pytest.approx(theirs["experts"]["a"]["norm"], rel=1e-5)
    assert ours["pairs"] and all(v["cosine"] is not None for v in ours["pairs"].values())
    experts = [adapters[0], f"{base}+{adapters[1]}", {"adapter": adapters[2]}]
    found = check({"method": "ties", "base": base, "experts": experts})
    assert found.deltas is not None and not [f for f in found.findings if f.kind == "missing"]
