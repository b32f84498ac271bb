"""Laws of merging adapters, over variants, ranks and targets; and what the papers on adapters promise."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import base_of, change, lora, noise, save_lora, save_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import plait
from models import read
from plait.errors import RecipeError
from plait.tensors.lowrank import LowRank, choose_rank, concatenate, from_svd

State = dict[str, Tensor]
MODULES = {"a.q_proj": (12, 8), "b.up_proj": (8, 20), "c.q_proj": (12, 8)}
SHAPES = {f"{m}.weight": s for m, s in MODULES.items()}
LINEAR = ("task_arithmetic", "linear", "knots", "core_space", "peft")
few = settings(max_examples=6, deadline=None)


def merged(home: Path, method: Any, states: list[State], weights: list[float], **recipe: Any) -> State:
    """Changes that a merge of adapters writes as an adapter."""
    experts = {}
    for i, (state, weight) in enumerate(zip(states, weights, strict=True)):
        rank = max(t.shape[0] for k, t in state.items() if "lora_A" in k)
        pattern = {k[17:-14]: t.shape[0] for k, t in state.items() if "lora_A" in k}
        folder = home / f"a{i}"
        if not folder.exists():
            save_lora(folder, state, r=rank, lora_alpha=rank, rank_pattern=pattern, alpha_pattern=pattern)
        experts[f"e{i}"] = {"adapter": str(folder), "weight": weight}
    out = home / f"out{len(list(home.glob('out*')))}"
    plait.merge({"method": method, "experts": experts, "output": {"energy": 1.0}, **recipe}, out, threads=1)
    state = read(out)
    return {m: change(state, m) for m in MODULES if f"base_model.model.{m}.lora_A.weight" in state}


def close(ours: State, theirs: State, tolerance: float = 1e-5) -> None:
    for module in {*ours, *theirs}:
        wanted = theirs.get(module, torch.zeros(()))
        gap = (ours.get(module, torch.zeros(())) - wanted).double().norm()
        assert float(gap) <= tolerance * float(wanted.double().norm()) + 1e-9, module


@st.composite
def adapters(draw: Any, count: int) -> list[State]:
    """Adapters of mixed ranks and targets."""
    found = []
    for i in range(count):
        targets = draw(st.lists(st.sampled_from(sorted(MODULES)), min_size=1, max_size=3, unique=True))
        ranks = {module: draw(st.integers(1, 4)) for module in targets}
        found.append(lora({m: MODULES[m] for m in targets}, ranks, seed=draw(st.integers(0, 50)) + 60 * i))
    return found


def parameters(method: str) -> dict[str, Any]:
    """Under which a method is the plain sum."""
    return {"knots": {"inner": "sum"}, "core_space": {"inner": "sum"}, "peft": {"combination": "cat"}}.get(method, {})


@few
@given(adapters(1), st.sampled_from(LINEAR))
def test_one_adapter_of_weight_1_is_itself(states: list[State], method: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        ours = merged(Path(home), method, states, [1.0], parameters=parameters(method))
        close(ours, {m: change(states[0], m) for m in ours})


@few
@given(adapters(2), st.sampled_from(LINEAR))
def test_weights_1_and_0_are_the_first(states: list[State], method: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        ours = merged(Path(home), method, states, [1.0, 0.0], parameters=parameters(method))
        close(ours, {m: change(states[0], m) for m in MODULES if f"base_model.model.{m}.lora_A.weight" in states[0]})


@few
@given(adapters(3), st.sampled_from([*LINEAR, "ties", "tsv_merge", "dc_merge"]))
def test_the_order_does_not_matter(states: list[State], method: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        first = merged(Path(home), method, states, [0.5, 1.0, -0.3], parameters=parameters(method))
    with tempfile.TemporaryDirectory() as home:
        close(merged(Path(home), method, states[::-1], [-0.3, 1.0, 0.5], parameters=parameters(method)), first, 1e-4)


@few
@given(adapters(3), st.sampled_from([*LINEAR, "ties", "tsv_merge", "dc_merge", "svd"]))
def test_the_low_rank_path_is_the_dense_path(states: list[State], method: str) -> None:
    """A full model as output goes through dense blocks and whole matrices."""
    chosen = {"svd": ("peft", {"combination": "svd", "rank": 3})}.get(method, (method, parameters(method)))
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        ours = merged(home, chosen[0], states, [0.7, -0.4, 1.1], parameters=chosen[1])
        base = base_of(SHAPES)
        experts = {f"e{i}": {"adapter": str(home / f"a{i}"), "weight": w} for i, w in enumerate((0.7, -0.4, 1.1))}
        recipe = {"method": chosen[0], "base": str(save_model(home / "base", base)), "experts": experts}
        plait.merge({**recipe, "parameters": chosen[1], "dtype": "float64"}, home / "model", threads=1)
        dense = read(home / "model")
        for name, weight in dense.items():
            change_of = ours.get(name.removesuffix(".weight"), torch.zeros(1))
            gap = (weight.double() - base[name].double() - change_of).norm()
            assert float(gap) <= 1e-4 * float(change_of.norm()) + 1e-6


@few
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_factors_know_their_product(first: int, second: int, seed: int) -> None:
    """Norms, inner products, singular values, sums and truncations, against the dense matrix."""
    parts = [
        LowRank(noise(9, r, seed=seed + i), noise(r, 7, seed=seed + i + 50)) for i, r in enumerate((first, second))
    ]
    dense = [part.dense().double() for part in parts]
    assert parts[0].squared_norm() == pytest.approx(float(dense[0].square().sum()), rel=1e-5)
    assert parts[0].inner(parts[1]) == pytest.approx(float((dense[0] * dense[1]).sum()), rel=1e-4, abs=1e-3)
    total = concatenate(parts, [0.5, -2.0])
    wanted = 0.5 * dense[0] - 2 * dense[1]
    assert torch.allclose(total.dense().double(), wanted, atol=1e-4)
    found = total.svd()
    assert torch.allclose(found.s, torch.linalg.svdvals(wanted)[: found.s.numel()], rtol=1e-5, atol=1e-5)
    count = choose_rank(found.s, None, 0.9)
    squares = found.s.square()
    assert float(squares[:count].sum()) >= 0.9 * float(squares.sum()) > float(squares[: count - 1].sum())
    balanced = from_svd(found)
    assert torch.allclose(balanced.b.norm(dim=0), balanced.a.norm(dim=1), rtol=1e-4)
    assert torch.allclose(total.balanced().dense(), total.dense(), atol=1e-4)


def test_lego_of_equal_adapters_is_the_adapter(tmp_path: Path) -> None:
    """And of as many clusters as ranks, the sum."""
    one, two = lora(MODULES, 3, seed=1), lora(MODULES, 2, seed=2)
    close(merged(tmp_path / "1", "lora_lego", [one, one], [1.0, 1.0]), {m: change(one, m) for m in MODULES})
    both = {m: change(one, m) + change(two, m) for m in MODULES}
    recipe = {"parameters": {"rank": 5, "output": 1.0}}
    close(merged(tmp_path / "2", "lora_lego", [one, two], [1.0, 1.0], **recipe), both)
    backwards = merged(tmp_path / "3", "lora_lego", [two, one], [1.0, 1.0], parameters={"rank": 3})
    close(merged(tmp_path / "4", "lora_lego", [one, two], [1.0, 1.0], parameters={"rank": 3}), backwards, 1e-4)


def test_do_merging_lets_no_magnitude_decide_the_direction(tmp_path: Path) -> None:
    """Scaling one adapter scales magnitudes alone; one adapter is itself; orthogonal ones are left as they are."""
    one, two = lora(MODULES, 3, seed=1), lora(MODULES, 3, seed=2)
    close(merged(tmp_path / "1", "do_merging", [one], [1.0]), {m: change(one, m) for m in MODULES})
    loud = {k: v * 5 if "lora_B" in k else v for k, v in two.items()}
    plain = merged(tmp_path / "2", "do_merging", [one, two], [1.0, 1.0])
    louder = merged(tmp_path / "3", "do_merging", [one, loud], [1.0, 1.0])
    for module in MODULES:
        first, second = (torch.nn.functional.normalize(c[module], dim=0) for c in (plain, louder))
        assert torch.allclose(first, second, atol=1e-4)
    apart = {k: v.clone() for k, v in one.items()}
    for k, v in apart.items():
        q = torch.linalg.qr(torch.cat([one[k].mT, v.mT], 1) if "lora_A" in k else torch.cat([one[k], v], 1)).Q
        q = q[:, 3:6] if q.shape[1] >= 6 else q[:, 3:]
        apart[k] = (q.mT if "lora_A" in k else q).contiguous() if q.shape[1] == 3 else v
    full = {"parameters": {"orthogonalize": False}}
    with_step = merged(tmp_path / "4", "do_merging", [one, apart], [1.0, 1.0])
    without = merged(tmp_path / "5", "do_merging", [one, apart], [1.0, 1.0], **full)
    module = "b.up_proj"
    assert float((with_step[module] - without[module]).norm()) <= 1e-3 * float(without[module].norm())


def test_do_merging_makes_adapters_less_alike() -> None:
    """The descent lowers the overlap it is meant to lower, and stays near."""
    from plait.methods.do_merging import DoMerging

    rows = [noise(4, 30, seed=1), noise(4, 30, seed=1) + 0.3 * noise(4, 30, seed=2)]
    apart = DoMerging(steps=300, rate=0.05, gamma=0.1)._apart(rows)
    assert float((apart[0] @ apart[1].mT).norm()) < 0.7 * float((rows[0] @ rows[1].mT).norm())
    assert all(float((a - r).norm()) < float(r.norm()) for a, r in zip(apart, rows, strict=True))


def test_peft_combinations_need_equal_ranks_where_factors_add_up(tmp_path: Path) -> None:
    one, two = lora(MODULES, 3, seed=1), lora(MODULES, 2, seed=2)
    with pytest.raises(RecipeError, match="have the ranks 3, 2"):
        merged(tmp_path / "1", "peft", [one, two], [1.0, 1.0])
    drawn = {"combination": "dare_linear", "density": 0.5}
    two = lora(MODULES, 3, seed=2)
    first = merged(tmp_path / "2", "peft", [one, two], [1.0, 1.0], parameters=drawn, seed=1)
    again = merged(tmp_path / "3", "peft", [one, two], [1.0, 1.0], parameters=drawn, seed=1)
    other = merged(tmp_path / "4", "peft", [one, two], [1.0, 1.0], parameters=drawn, seed=2)
    assert all(torch.equal(first[m], again[m]) for m in MODULES)
    assert any(not torch.equal(first[m], other[m]) for m in MODULES)


def test_methods_on_factors_refuse_full_models(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", base_of(SHAPES))
    other = save_model(tmp_path / "other", base_of(SHAPES, seed=9))
    adapter = save_lora(tmp_path / "a", lora(MODULES))
    recipe = {"base": str(base), "experts": {"x": str(adapter), "y": str(other)}}
    with pytest.raises(RecipeError, match=r"'lora_lego' merges the factors of adapters, but .* of 'y'"):
        plait.plan({"method": "lora_lego", **recipe})
    with pytest.raises(RecipeError, match="use it alone"):
        plait.plan({"method": ["dare", "peft"], "base": str(base), "experts": [str(adapter)]})
