"""What the papers of this family promise, on small models and by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import plait
from plait.errors import RecipeError
from plait.tensors.order import count_lower, count_upper, nth_largest
from plait.tensors.ranks import relative_magnitudes, relative_ranks
from plait.tensors.selection import locate
from plait.testing import sample_models

State = dict[str, Tensor]
BASE, EXPERTS = sample_models(3)


def of(*deltas: list[float] | Tensor) -> tuple[State, list[State]]:
    """A base of zeros with one tensor, and one expert per delta."""
    tensors = [torch.as_tensor(delta, dtype=torch.float32) for delta in deltas]
    return {"w": torch.zeros_like(tensors[0])}, [{"w": tensor} for tensor in tensors]


def run(method: Any, *deltas: list[float] | Tensor, **options: Any) -> Tensor:
    base, experts = of(*deltas)
    return plait.merge_state_dicts(method, experts, base, **options)["w"]


def values(tensor: Tensor, tolerance: float = 1e-6) -> Any:
    return pytest.approx(tensor.tolist(), abs=tolerance)


def same(a: State, b: State, tolerance: float = 1e-6) -> None:
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=name)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- order statistics ------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60), st.data())
def test_nth_largest_is_that_of_a_sort(numbers: list[float], data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, len(numbers)))
    cut = data.draw(st.integers(0, len(numbers)))
    vector = torch.tensor(numbers, dtype=torch.float32)
    parts = [vector[:cut], vector[cut:]]
    upper = count_upper(parts[0]) + count_upper(parts[1])
    place = locate(upper, rank)
    lower = count_lower(parts[0], place.bin) + count_lower(parts[1], place.bin)
    assert nth_largest(place, lower) == sorted(vector.tolist(), reverse=True)[rank - 1]


def test_relative_ranks_run_from_zero_to_one() -> None:
    found = relative_ranks(torch.tensor([[3.0, -1.0, 2.0, -5.0, 4.0], [0.1, 0.2, -0.3, 0.4, -0.5]]))
    assert found.tolist() == [[0.5, 0.0, 0.25, 1.0, 0.75], [0.0, 0.25, 0.5, 0.75, 1.0]]
    assert relative_ranks(torch.tensor([[7.0]])).tolist() == [[0.5]]
    found = relative_magnitudes(torch.tensor([[1.0, -3.0, 2.0], [4.0, -4.0, 4.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.5], [0.5, 0.5, 0.5]]))


# --- compositions with preset values ---------------------------------------------------------------------------------


def test_a_compositions_plain_parameter_goes_to_the_step_without_a_preset(tmp_path: Path) -> None:
    for name in ("base", "expert"):
        save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    recipe = {
        "method": "breadcrumbs_ties",
        "base": str(tmp_path / "base.safetensors"),
        "experts": {"a": str(tmp_path / "expert.safetensors")},
        "parameters": {"density": 0.5, "scope": "tensor", "ties.zero_sign": "majority"},
    }
    (job,) = plait.plan(recipe).jobs
    sparsifier, ties = (dataclasses.asdict(method) for method in job.methods)
    assert (sparsifier["density"], sparsifier["scope"]) == (0.5, "tensor")
    assert (ties["density"], ties["scope"], ties["combine"], ties["zero_sign"]) == (1.0, "tensor", "sum", "majority")


def test_a_preset_gives_way_to_what_the_recipe_says() -> None:
    assert run("della", [1.0, -2.0], density=1.0).tolist() == values(torch.tensor([1.1, -2.2]))
    assert run("della", [1.0, -2.0], density=1.0, lambda_=2.0).tolist() == [2.0, -4.0]
    assert run("della", [1.0, -2.0], **{"magprune.density": 1.0, "ties.density": 0.4, "lambda": 1.0}).tolist() == [
        0,
        -2,
    ]
    with pytest.raises(RecipeError, match="belongs to several steps"):
        run("dare_ties", [1.0, -2.0], density=0.5)


# --- Breadcrumbs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remove_first", [True, False])
def test_breadcrumbs_keep_exact_ranks_of_every_row(remove_first: bool) -> None:
    delta = random(7, 40)
    merged = run("model_breadcrumbs", delta, density=0.5, gamma=0.1, remove_first=remove_first)
    order = delta.abs().argsort(dim=1, descending=True)
    first, last = 4, 24 if remove_first else 20
    for row in range(7):
        kept = set(order[row, first:last].tolist())
        assert set(merged[row].nonzero().flatten().tolist()) == kept
        assert torch.equal(merged[row, list(kept)], delta[row, list(kept)])


def test_breadcrumbs_of_everything_are_task_arithmetic() -> None:
    whole = plait.merge_state_dicts("model_breadcrumbs", EXPERTS, BASE, density=1.0, gamma=0.0, lambda_=0.4)
    same(whole, plait.merge_state_dicts("task_arithmetic", EXPERTS, BASE, lambda_=0.4), 0.0)


@pytest.mark.parametrize("scope", ["row", "tensor"])
def test_the_largest_entries_are_never_kept(scope: str) -> None:
    delta = random(6, 50, seed=2)
    merged = run("model_breadcrumbs", delta, density=0.98, gamma=0.02, scope=scope)
    top = delta.abs().argmax(dim=1, keepdim=True) if scope == "row" else delta.abs().flatten().argmax()
    assert not (merged.gather(1, top) if scope == "row" else merged.flatten()[top]).any()


def test_breadcrumbs_where_the_fractions_do_not_fit() -> None:
    delta = [5.0, -4.0, 3.0, -2.0, 1.0]
    assert run("model_breadcrumbs", delta, density=0.8, gamma=0.4).tolist() == [0, 0, 3, -2, 1]
    crowded = {"density": 0.8, "gamma": 0.4, "scope": "tensor", "crowded": "drop_less"}
    assert run("model_breadcrumbs", delta, **crowded).tolist() == [0, -4, 3, -2, 1]


def test_mergekits_bug_is_off_unless_asked_for() -> None:
    delta = [5.0, -4.0, 3.0, -2.0, 1.0]
    options = {"density": 0.8, "gamma": 0.1, "scope": "tensor"}
    assert run("model_breadcrumbs", delta, **options).tolist() == [5, -4, 3, -2, 0]
    assert not run("model_breadcrumbs", delta, drop_small_tensors=True, **options).any()


def test_breadcrumbs_leave_scalars_alone() -> None:
    assert run("model_breadcrumbs", torch.tensor(3.0)).item() == 3.0


def test_breadcrumbs_ties_sums_those_who_agree() -> None:
    merged = run("breadcrumbs_ties", [1.0, -2.0, 3.0], [2.0, 1.0, -3.0], [1.0, -1.0, 0.0], density=1.0, gamma=0.0)
    assert merged.tolist() == [4.0, -3.0, 3.0]  # the third entry's votes cancel, which counts as +


# --- DELLA -----------------------------------------------------------------------------------------------------------


def test_a_window_of_zero_is_dare() -> None:
    options = {"density": 0.6, "rescale": "inverse", "seed": 3}
    della = plait.merge_state_dicts(["magprune", "task_arithmetic"], EXPERTS, BASE, epsilon=0.0, **options)
    same(della, plait.merge_state_dicts(["dare", "task_arithmetic"], EXPERTS, BASE, **options))


@pytest.mark.parametrize("options", [{}, {"scope": "tensor"}, {"by": "magnitude"}])
def test_magprune_is_unbiased_and_keeps_large_entries_more_often(options: dict[str, str]) -> None:
    delta = random(8, 16, seed=5)
    epsilon, density, rounds = 0.2, 0.5, 200
    total, kept = torch.zeros_like(delta), torch.zeros_like(delta)
    for seed in range(rounds):
        drawn = run("della_linear", delta, density=density, epsilon=epsilon, seed=seed, threads=1, **options)
        total += drawn
        kept += drawn != 0
    sigma = delta.abs() * (1 / 0.3 - 1) ** 0.5 / rounds**0.5
    assert bool(((total / rounds - delta).abs() <= 5 * sigma).all())
    share = kept / rounds
    largest, smallest = delta.abs().argmax(1, keepdim=True), delta.abs().argmin(1, keepdim=True)
    if options.get("scope") != "tensor":
        assert abs(float(share.gather(1, largest).mean()) - (density + epsilon)) < 0.05
        assert abs(float(share.gather(1, smallest).mean()) - (density - epsilon)) < 0.05
    if options.get("by") != "magnitude":
        assert abs(float(share.mean()) - density) < 0.02
    assert float(np.corrcoef(share.flatten(), delta.abs().flatten())[0, 1]) > 0.5


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.1), (0.9, 0.15), (0.5, 0.6)])
def test_probabilities_outside_the_unit_interval_are_refused(density: float, epsilon: float) -> None:
    with pytest.raises(RecipeError, match="they must lie in"):
        run("della", [1.0, 2.0], density=density, epsilon=epsilon)


def test_a_row_of_one_is_kept_with_probability_density() -> None:
    draws: Callable[[str, str], Tensor] = lambda tensor, expert: torch.tensor([[0.79], [0.81]])  # noqa: E731
    merged = run("della_linear", torch.tensor([[2.0], [2.0]]), density=0.8, epsilon=0.1, replay=draws)
    assert merged.flatten().tolist() == values(torch.tensor([2.5, 0.0]))


def test_della_is_prune_elect_fuse() -> None:
    deltas = {"expert0": [4.0, -1.0, 2.0], "expert1": [-3.0, -2.0, 1.0]}
    drawn = {"expert0": [0.75, 0.2, 0.9], "expert1": [0.1, 0.59, 0.3]}
    merged = run("della", *deltas.values(), density=0.6, epsilon=0.2, replay=lambda t, e: torch.tensor(drawn[e]))
    # ranks: expert0 keeps with .8, .4, .6 → 4/.8, −1/.4, dropped; expert1 with .8, .6, .4 → −3/.8, −2/.6, 1/.4
    wanted = [1.1 * 5.0, 1.1 * (-2.5 - 2 / 0.6) / 2, 1.1 * 2.5]
    assert merged.tolist() == pytest.approx(wanted, abs=1e-6)


def test_l1_rescaling_restores_each_tensors_norm() -> None:
    delta = random(20, 30, seed=4)
    merged = run("della_linear", delta, density=0.5, epsilon=0.1, rescale="l1")
    assert 0.3 < float((merged == 0).float().mean()) < 0.7
    assert float(merged.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-5)


# --- magnitude pruning, MagMax, EMR ----------------------------------------------------------------------------------


def test_magnitude_pruning_drops_the_smallest_of_its_scope() -> None:
    delta = random(5, 30, seed=6)
    rows = run(["magnitude_pruning", "task_arithmetic"], delta, density=0.3)
    assert (rows != 0).sum(1).tolist() == [9] * 5 and float(rows.abs().sum(1)[0]) == pytest.approx(
        float(delta[0].abs().topk(9).values.sum())
    )
    for scope in ("tensor", "model"):
        whole = run(["magnitude_pruning", "task_arithmetic"], delta, density=0.3, scope=scope)
        assert torch.equal(whole, delta * (delta.abs() >= delta.abs().flatten().topk(45).values[-1]))


def test_magmax_takes_the_largest_change_and_the_later_of_equals() -> None:
    merged = run("magmax", [1.0, -3.0, 2.0, 0.5], [-2.0, 1.0, -2.0, 0.5], lambda_=1.0)
    assert merged.tolist() == [-2.0, -3.0, -2.0, 0.5]
    assert run("magmax", [1.0, -3.0]).tolist() == [0.5, -1.5]


def test_emr_keeps_the_largest_of_the_elected_sign() -> None:
    merged = run("emr", [3.0, -1.0, 1.0, 0.0, 2.0], [-2.0, -4.0, -1.0, 0.0, 1.0], [1.0, 3.0, 0.0, 0.0, -1.0])
    assert merged.tolist() == [3.0, -4.0, -1.0, 0.0, 2.0]  # a cancelled vote counts as −


# --- SCE and VaRM ----------------------------------------------------------------------------------------------------


def test_sce_of_everything_with_equal_signs_is_the_varm_mean() -> None:
    deltas = [random(6, 9, seed=i).abs() * (i + 1) for i in range(3)]
    torch.testing.assert_close(run("sce", *deltas, select_topk=1.0), run("varm", *deltas))


def test_sce_by_hand() -> None:
    a, b = np.array([1.0, 2.0, -3.0, 0.5]), np.array([3.0, 2.0, 2.0, -0.5])
    # variances 1, 0, 6.25, .25: three are not zero, int(.7·3) = 2 are selected: entries 0 and 2
    eta = np.array([1 + 9, 9 + 4]) / 23
    outside = 2.0  # entry 1: both agree; entry 3: the votes cancel, + wins
    weights = run("sce", a.tolist(), b.tolist(), select_topk=0.7)
    assert weights.tolist() == pytest.approx([eta[0] + 3 * eta[1], outside, -3.0, 0.5], abs=1e-6)
    deltas = run("sce", a.tolist(), b.tolist(), select_topk=0.7, select="deltas")
    assert deltas.tolist() == pytest.approx([eta[0] + 3 * eta[1], 0.0, -3.0, 0.0], abs=1e-6)
    even = run("sce", a.tolist(), b.tolist(), select_topk=0.7, negligible=1e3)
    assert even.tolist() == pytest.approx([2.0, 2.0, -3.0, 0.5], abs=1e-6)


def test_sce_of_three_equal_experts_has_no_variance() -> None:
    """The mean of three equal float32 numbers may be another number."""
    delta = random(300).tolist()
    assert run("sce", delta, delta, delta, select="deltas").tolist() == [0.0] * 300


def test_sce_without_variance() -> None:
    assert run("sce", [1.0, -2.0], [1.0, -2.0]).tolist() == [1.0, -2.0]
    assert run("sce", [1.0, -2.0], [1.0, -2.0], select="deltas").tolist() == [0.0, 0.0]
    assert run("sce", [1.0, -2.0], [1.0, -2.0], select="deltas", select_topk=1.0).tolist() == [1.0, -2.0]


GRANULARITIES = ["matrix", "module", "layer", "model", "total", "parameter"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_varm_of_identical_experts_is_the_expert(granularity: str) -> None:
    merged = plait.merge_state_dicts("varm", [EXPERTS[0]] * 3, BASE, granularity=granularity)
    same(merged, EXPERTS[0])


@pytest.mark.parametrize("granularity", [g for g in GRANULARITIES if g != "layer"])
def test_varm_gives_an_unchanged_expert_no_weight(granularity: str) -> None:
    merged = plait.merge_state_dicts("varm", [EXPERTS[0], BASE], BASE, granularity=granularity)
    same(merged, EXPERTS[0])


@pytest.mark.parametrize(("measure", "power"), [("square", 2), ("abs", 1)])
def test_varm_weighs_by_the_part_of_the_model(measure: str, power: int) -> None:
    parts = {
        "encoder.layers.0.attn.q.weight": ("e0", "attn"),
        "encoder.layers.0.attn.q.bias": ("e0", "attn"),
        "encoder.layers.0.mlp.up.weight": ("e0", "mlp"),
        "decoder.layers.0.attn.q.weight": ("d0", "attn"),
        "embed.weight": (None, "embed"),
    }
    shapes = [(4, 6), (4,), (3, 5), (4, 6), (9, 2)]
    deltas = [
        {n: random(*s, seed=7 * i + j) for j, (n, s) in enumerate(zip(parts, shapes, strict=True))} for i in (0, 1)
    ]
    deltas[1]["encoder.layers.0.attn.q.weight"][:2] = 0
    base = {n: torch.zeros(s) for n, s in zip(parts, shapes, strict=True)}

    def amount(names: list[str], i: int, level: str) -> float:
        size = {n: float((deltas[i][n].double().abs() ** power).sum()) for n in names}
        if level in ("layer", "module"):
            return sum(size[n] / base[n].numel() for n in names)
        changed = sum(int((deltas[i][n] != 0).sum()) for n in names)
        return sum(size.values()) * (changed if level == "total" else 1)

    for level in ("matrix", "module", "layer", "model", "total"):
        merged = plait.merge_state_dicts("varm", deltas, base, granularity=level, measure=measure)
        for name, part in parts.items():
            of_level = {
                "matrix": [name],
                "module": [n for n, p in parts.items() if p == part],
                "layer": [n for n, p in parts.items() if p[0] == part[0]],
            }.get(level, list(parts))
            share = np.array([amount(of_level, i, level) for i in (0, 1)])
            share = np.array([0.5, 0.5]) if level == "layer" and part[0] is None else share / share.sum()
            wanted = share[0] * deltas[0][name].double() + share[1] * deltas[1][name].double()
            torch.testing.assert_close(merged[name].double(), wanted, rtol=1e-5, atol=1e-7, msg=f"{level} {name}")


def test_varm_per_parameter_keeps_what_nobody_moved() -> None:
    base = {"w": torch.tensor([5.0, 5.0])}
    experts = [{"w": torch.tensor([5.0, 6.0])}, {"w": torch.tensor([5.0, 3.0])}]
    merged = plait.merge_state_dicts("varm", experts, base, granularity="parameter")["w"]
    assert merged.tolist() == values(torch.tensor([5.0, 5 + (1 - 2 * 4) / 5]))
    broken = plait.merge_state_dicts("varm", experts, base, granularity="parameter", zero_unmoved=True)["w"]
    assert broken[0] == 0.0 and broken[1] == pytest.approx(float(merged[1]))


# --- RAM -------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_ram_of_disjoint_changes_is_their_sum(owners: list[int]) -> None:
    owner = torch.tensor(owners)
    change = random(len(owners), seed=1).abs() + 0.1
    deltas = [change * (owner == i) for i in range(3)]
    merged = run("ram", *deltas)
    torch.testing.assert_close(merged, sum(deltas[1:], deltas[0]))
    torch.testing.assert_close(run("ram", *deltas, shared="ties", scope="tensor"), merged)


def test_ram_of_identical_experts_is_the_expert() -> None:
    same(plait.merge_state_dicts("ram", [EXPERTS[0]] * 3, BASE, epsilon=0.0), EXPERTS[0])
    assert run("ram", [1e-6, -1e-6, 0.5]).tolist() == [0.0, 0.0, 0.5]


def test_ram_plus_amplifies_by_the_overlap() -> None:
    base = {"v": torch.zeros(4), "w": torch.zeros(3)}
    first = {"v": torch.tensor([1.0, 2.0, 3.0, 0.0]), "w": torch.tensor([1.0, 0.0, 1.0])}
    second = {"v": torch.tensor([3.0, 0.0, 0.0, 4.0]), "w": torch.tensor([3.0, 2.0, 0.0])}
    # over the model: first shares 2 and has 3 of its own; second shares 2 and has 2; in v: 1 of 2, 1 of 1; in w: 1, 1
    a, b = 1 + 0.2 * 2 / 3, 1 + 0.2
    plus = plait.merge_state_dicts("ram_plus", [first, second], base)
    assert plus["v"].tolist() == pytest.approx([2.0, 2 * a, 3 * a, 4 * b])
    assert plus["w"].tolist() == pytest.approx([2.0, 2 * b, a])
    earlier = plait.merge_state_dicts("ram_plus", [first, second], base, ratio="active")
    assert earlier["v"].tolist() == pytest.approx([2.0, 2 * (1 + 0.2 * 2 / 5), 3 * (1 + 0.2 * 2 / 5), 4 * 1.1])
    local = plait.merge_state_dicts("ramplus_tl", [first, second], base, limit=0.7)
    assert local["v"].tolist() == pytest.approx([2.0, 2 * 1.05, 3 * 1.05, 4 * 1.07])
    assert local["w"].tolist() == pytest.approx([2.0, 2 * 1.07, 1.07])


def test_ram_with_ties_trims_and_elects_shared_entries_only() -> None:
    first, second = [4.0, -1.0, 2.0, 1.0, 7.0], [-2.0, -3.0, 1.0, 5.0, 0.0]
    merged = run("ram", first, second, shared="ties", density=0.5, scope="tensor")
    # of four shared magnitudes the int(.5·4) = 2nd smallest is the threshold: 1 for the first, which keeps all; 2 for
    # the second, which loses its 1
    assert merged.tolist() == pytest.approx([4.0, -2.0, 2.0, 3.0, 7.0])


# --- PCB -------------------------------------------------------------------------------------------------------------


def _pcb(deltas: np.ndarray, ratio: float, scale: float, clamp: float, cross: str) -> np.ndarray:
    """The paper's steps with sorts, in float64."""
    n, d = deltas.shape

    def clipped(x: np.ndarray, low: float, high: float) -> np.ndarray:
        order = np.sort(x, axis=1)
        return np.clip(x, order[:, [int(d * low)]], order[:, [int(d * (1 - high) - 1)]])

    def norm(x: np.ndarray) -> np.ndarray:
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        return (x - low) / (high - low)

    size = clipped(np.abs(deltas), clamp, clamp)
    met = deltas.sum(0) if cross == "deltas" else (np.sign(deltas) * norm(size)).sum(0)
    score = norm(clipped(np.exp(n * norm(size) ** 2) * np.tanh(deltas * met), 1 - ratio, 0.0))
    return scale * (np.sign(deltas) * size * score).sum(0) / np.maximum(score.sum(0), 1e-12)


@pytest.mark.parametrize("cross", ["deltas", "standing"])
def test_pcb_is_the_papers(cross: str) -> None:
    deltas = torch.stack([random(400, seed=i) for i in range(3)])
    merged = run("pcb", *deltas, ratio=0.25, lambda_=0.9, clamp=0.02, cross=cross)
    wanted = _pcb(deltas.double().numpy(), 0.25, 0.9, 0.02, cross)
    np.testing.assert_allclose(merged.double().numpy(), wanted, atol=2e-6)


def test_pcb_spans_the_whole_model() -> None:
    names = list(BASE)
    flat = np.stack([np.concatenate([(e[n] - BASE[n]).double().flatten() for n in names]) for e in EXPERTS])
    merged = plait.merge_state_dicts("pcb", EXPERTS, BASE, ratio=0.1, lambda_=1.0)
    ours = np.concatenate([(merged[n] - BASE[n]).double().flatten() for n in names])
    wanted = _pcb(flat, 0.1, 1.0, 1e-4, "deltas")
    assert np.linalg.norm(ours - wanted) <= 1e-5 * np.linalg.norm(wanted)


def test_pcb_of_one_expert_keeps_its_winners_as_they_are() -> None:
    delta = random(1000, seed=8)
    merged = run("pcb", delta, ratio=0.1, lambda_=1.0, clamp=0.0)
    kept = merged != 0
    assert 90 <= int(kept.sum()) <= 100
    torch.testing.assert_close(merged[kept], delta[kept])
    assert float(delta[kept].abs().min()) >= float(delta[~kept].abs().max())


def test_pcb_weights_stay_out_of_the_denominator() -> None:
    deltas = [random(200, seed=i) for i in range(2)]
    doubled = run("pcb", *deltas, ratio=0.5, weights=[2.0, 2.0])
    torch.testing.assert_close(doubled, 2 * run("pcb", *deltas, ratio=0.5))


def test_pcb_survives_many_experts() -> None:
    deltas = [random(300, seed=i) for i in range(100)]
    assert bool(torch.isfinite(run("pcb", *deltas)).all())  # exp(100) is beyond float32


# --- Consensus -------------------------------------------------------------------------------------------------------


def test_consensus_of_nobody_is_task_arithmetic_and_of_too_many_the_base() -> None:
    everything = plait.merge_state_dicts("consensus_ta", EXPERTS, BASE, agreement=0, lambda_=0.3)
    same(everything, plait.merge_state_dicts("task_arithmetic", EXPERTS, BASE, lambda_=0.3))
    same(plait.merge_state_dicts("consensus_ta", EXPERTS, BASE, agreement=4), BASE, 0.0)


def test_one_task_leads_to_itself() -> None:
    same(plait.merge_state_dicts("consensus_ta", EXPERTS[:1], BASE, agreement=1, threshold=1.0), EXPERTS[0])


def test_consensus_by_hand() -> None:
    # the sum is 3, 0, 3, 0: distances to a 2, 1, 3, 2 and to b 1, 1, 0, 2
    a, b = [1.0, 1.0, 0.0, -2.0], [2.0, -1.0, 3.0, 2.0]
    assert run("consensus_ta", a, b, threshold=0.4).tolist() == [3.0, 0.0, 0.0, 0.0]
    assert run("consensus_ta", a, b, threshold=0.4, agreement=1, alpha=0.5).tolist() == [1.5, 0.0, 1.5, 0.0]
    assert run("consensus_ta", a, b, threshold=0.5).tolist() == [0.0, 0.0, 0.0, 0.0]  # 1 > .5 · 2 is false
    each = {"expert0": 0.4, "expert1": 3.0}
    assert run("consensus_ta", a, b, threshold=each).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_consensus_keeps_less_at_a_higher_threshold() -> None:
    deltas = [random(500, seed=i) for i in range(3)]
    counts = [int((run("consensus_ta", *deltas, threshold=t) != 0).sum()) for t in (0.0, 0.2, 0.4, 0.6, 1.0, 2.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 500 and counts[-1] < counts[2]


def test_consensus_ties_masks_the_sum_of_those_who_agree() -> None:
    ties = plait.merge_state_dicts("ties", EXPERTS, BASE, combine="sum")
    both = plait.merge_state_dicts("consensus_ties", EXPERTS, BASE, agreement=0)
    same(both, ties)


# --- Localize-and-Stitch ---------------------------------------------------------------------------------------------


def test_regions_add_and_their_overlap_is_averaged() -> None:
    a, b = [9.0, 0.1, -5.0, 0.2, 1.0], [0.1, 8.0, 7.0, -0.2, 1.0]
    # of each the third largest (1.0) is the threshold, which itself is left out
    assert run("localize_stitch", a, b, density=0.6).tolist() == [9.0, 8.0, 1.0, 0.0, 0.0]


def test_a_region_has_one_entry_less_than_the_density_says() -> None:
    delta = random(500, seed=3)
    merged = run("localize_stitch", delta, density=0.1)
    assert int((merged != 0).sum()) == 49
    assert float(merged.abs().sum()) == pytest.approx(float(delta.abs().topk(49).values.sum()), rel=1e-6)


def test_regions_are_those_of_the_whole_model_unless_told() -> None:
    base = {"small": torch.zeros(10), "large": torch.zeros(10)}
    expert = {"small": torch.arange(1.0, 11.0) / 100, "large": torch.arange(1.0, 11.0)}
    whole = plait.merge_state_dicts("localize_stitch", [expert], base, density=0.2)
    assert not whole["small"].any() and int((whole["large"] != 0).sum()) == 3
    local = plait.merge_state_dicts("localize_stitch", [expert], base, density=0.2, scope="tensor")
    assert int((local["small"] != 0).sum()) == 1 and int((local["large"] != 0).sum()) == 1
