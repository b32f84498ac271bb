"""What the papers of layer scaling, Model Stock, extrapolation, run averages and geometric means promise."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import plait
from plait.errors import RecipeError
from plait.methods import Subject, find
from plait.methods.checkpoint_average import Ema, Lawa, Mwa, Swa
from plait.methods.frank import Frank, fit_decay
from plait.tensors.geometry import cosines, gram, gram_matrix, gram_rows
from plait.tensors.quantiles import count_coarse, count_quantiles, quantile
from plait.tensors.rotation import cayley, closest_rotation, rotation_of
from plait.tensors.spectral import svd
from plait.testing import sample_models

State = dict[str, Tensor]


def merge(method: Any, experts: Any, base: State | None = None, **options: Any) -> State:
    return plait.merge_state_dicts(method, experts, base, **options)


def same(ours: Tensor, wanted: Any, tolerance: float = 1e-6) -> None:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    error = float((ours.double() - wanted).abs().max())
    assert error <= tolerance * max(1.0, float(wanted.abs().max())), error


def models(count: int, layers: int = 4, seed: int = 0, shape: tuple[int, ...] = (6, 5)) -> tuple[State, list[State]]:
    rng = torch.Generator().manual_seed(seed)
    names = [f"model.layers.{i}.{part}" for i in range(layers) for part in ("mlp.up_proj.weight", "norm.bias")]
    names += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    shapes = {n: (shape[-1],) if n.endswith(("bias", "norm.weight")) else shape for n in names}
    base = {n: torch.randn(s, generator=rng) for n, s in shapes.items()}
    return base, [{n: w + 0.1 * torch.randn(w.shape, generator=rng) for n, w in base.items()} for _ in range(count)]


def vectors(*rows: list[float]) -> list[State]:
    return [{"w": torch.tensor(row)} for row in rows]


# --- LiNeS ---------------------------------------------------------------------------------------------------------


def test_lines_scales_from_alpha_to_alpha_plus_beta() -> None:
    base, _ = models(0)
    zero = {name: torch.zeros_like(weight) for name, weight in base.items()}
    ones = {name: torch.ones_like(weight) for name, weight in base.items()}
    merged = merge(["task_arithmetic", "lines"], [ones], zero, alpha=0.25, beta=0.75)
    for name, update in merged.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        assert torch.equal(update, torch.full_like(update, 0.25 + 0.75 * layer / 3)), name


def test_lines_takes_the_layer_from_the_list_of_layers_not_from_a_later_number() -> None:
    zero = {f"stage.layers.{i}.conv.{j}.weight": torch.zeros(2) for i in range(3) for j in range(2)}
    ones = {name: torch.ones(2) for name in zero}
    merged = merge(["task_arithmetic", "lines"], [ones], zero, alpha=0.0, beta=1.0)
    for name, update in merged.items():
        assert float(update[0]) == int(name.split(".")[2]) / 2


def test_lines_without_beta_is_task_arithmetic_and_one_and_zero_change_nothing() -> None:
    base, experts = models(3)
    scaled = merge(["task_arithmetic", "lines"], experts, base, alpha=0.3, beta=0.0)
    for name, wanted in merge("task_arithmetic", experts, base, lambda_=0.3).items():
        same(scaled[name], wanted)
    plain = merge(["ties"], experts, base)
    kept = merge(["ties", "lines"], experts, base, alpha=1.0, beta=0.0)
    assert all(torch.equal(kept[name], plain[name]) for name in plain)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_lines_finds_alpha_from_l1_norms_of_the_whole_model(method: str, factor: float) -> None:
    base, experts = models(3)
    summed = sum(float(sum(e[n].double() - w.double() for e in experts).abs().sum()) for n, w in base.items())
    unscaled = merge(method, experts, base)
    size = sum(float((unscaled[n].double() - w.double()).abs().sum()) for n, w in base.items())
    alpha = summed / size / 3  # of the unscaled update; a coefficient in front cancels
    merged = merge([method, "lines"], experts, base, lambda_=factor, beta=0.5)
    for name, weight in base.items():
        depth = int(name.split(".")[2]) / 3 if ".layers." in name else 0.0
        share = alpha + 0.5 * depth * factor
        same(merged[name], weight.double() + share * (unscaled[name].double() - weight.double()), 1e-5)
    if method == "task_arithmetic":
        assert alpha == pytest.approx(1 / 3, rel=1e-5)


def test_lines_on_a_single_layer_is_alpha() -> None:
    zero, ones = {"h.0.weight": torch.zeros(3)}, {"h.0.weight": torch.ones(3)}
    same(merge(["task_arithmetic", "lines"], [ones], zero, alpha=0.4, beta=9.0)["h.0.weight"], [0.4] * 3)


# --- Model Stock ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["cosine", "angle"])
@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_model_stock_identical_gives_the_expert_and_orthogonal_the_base(average: str, scope: str) -> None:
    base, (expert,) = models(1)
    merged = merge("model_stock", [expert] * 3, base, average=average, scope=scope)
    for name in base:
        same(merged[name], expert[name], 1e-5)
    zero, *experts = vectors([1.0, 1, 1, 1], [3.0, 1, 1, 1], [1.0, 4, 1, 1], [1.0, 1, 0, 1])
    same(merge("model_stock", experts, zero, average=average, scope=scope)["w"], [1.0] * 4)


def test_model_stock_by_hand() -> None:
    base = {"w": torch.zeros(2, 2)}
    a, b = {"w": torch.tensor([[1.0, 0], [0, 2]])}, {"w": torch.tensor([[1.0, 1], [0, 2]])}
    c = 5 / math.sqrt(5 * 6)
    same(merge("model_stock", [a, b], base)["w"], 2 * c / (1 + c) * np.array([[1, 0.5], [0, 2]]))
    rows = np.array([1 / math.sqrt(2), 1.0])
    t = (2 * rows / (1 + rows))[:, None]
    same(merge("model_stock", [a, b], base, scope="row")["w"], t * np.array([[1, 0.5], [0, 2]]))


def test_model_stock_averages_cosines_or_angles() -> None:
    zero, *experts = vectors([0.0, 0], [1.0, 0], [1.0, 0], [math.cos(1.2), math.sin(1.2)])
    mean = np.mean([e["w"].double().numpy() for e in experts], axis=0)
    for average, c in (("cosine", (1 + 2 * math.cos(1.2)) / 3), ("angle", math.cos(2 * 1.2 / 3))):
        same(merge("model_stock", experts, zero, average=average)["w"], 3 * c / (1 + 2 * c) * mean)


def test_model_stock_stays_between_base_and_average_and_survives_the_pole() -> None:
    zero, a, b = vectors([0.0, 0], [1.0, 0.1], [-1.0, 0.1])
    same(merge("model_stock", [a, b], zero)["w"], [0.0, 0.0])
    cosine = (0.01 - 1) / 1.01
    same(merge("model_stock", [a, b], zero, clamp=False)["w"], [0.0, 2 * cosine / (1 + cosine) * 0.1], 1e-4)
    zero, a, b = vectors([0.0, 0], [1.0, 0.0], [-1.0, 0.0])  # 1 + c = 0
    same(merge("model_stock", [a, b], zero, clamp=False)["w"], [0.0, 0.0])


def test_model_stock_floor_counts_small_products_of_norms_as_itself() -> None:
    zero, a, b = vectors([0.0, 0], [1e-4, 0.0], [1e-4, 0.0])
    c = 1e-8 / 1e-6
    same(merge("model_stock", [a, b], zero, floor=1e-6)["w"] * 1e4, [2 * c / (1 + c), 0.0], 1e-6)


# --- extrapolation, NearSwap, Arcee fusion -------------------------------------------------------------------------


def test_expo_is_linear_in_alpha_between_base_and_expert() -> None:
    base, (expert,) = models(1)
    at = {alpha: merge("expo", [expert], base, alpha=alpha) for alpha in (-1.0, 0.0, 0.5, 1.0)}
    for name, weight in base.items():
        assert torch.equal(at[0.0][name], expert[name])
        same(at[-1.0][name], weight)
        same(at[1.0][name], 2 * expert[name].double() - weight.double())
        same(at[0.5][name], 0.5 * (at[0.0][name].double() + at[1.0][name].double()))
        same(at[0.5][name], merge("task_arithmetic", [expert], base, lambda_=1.5)[name])


def test_nearswap_takes_near_values_and_moves_others_by_t() -> None:
    base, expert = vectors([1.0, 1, 1, 1, 1], [1.05, 0.92, 3.0, -3.0, 1.0])
    t, b, x = 0.1, base["w"].double().numpy(), expert["w"].double().numpy()
    share = np.clip(t / np.maximum(np.abs(x - b), 1e-30), 0, 1)
    same(merge("nearswap", [expert], base, t=t)["w"], share * x + (1 - share) * b)


def test_arcee_fusion_by_hand_on_a_tensor_of_several_blocks() -> None:
    rng = torch.Generator().manual_seed(3)
    base = {"w": torch.randn(1200, 301, generator=rng)}
    expert = {"w": base["w"] + 0.1 * torch.randn(1200, 301, generator=rng) ** 3}
    x, b = (s["w"].double().numpy() for s in (expert, base))
    p, q = (np.exp(v) / np.exp(v).sum(-1, keepdims=True) for v in (x, b))
    importance = np.abs(x - b) * (p * np.log(p / q)).sum(-1, keepdims=True)
    low, middle, high = np.quantile(importance, [0.25, 0.5, 0.75])
    wanted = np.where(importance >= middle + 1.5 * (high - low), x, b)
    merged = merge("arcee_fusion", [expert], base)["w"].double().numpy()
    assert (merged != wanted).mean() < 1e-5
    assert 0.0 < (merged != b).mean() < 0.5


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40),
    st.floats(0, 1),
    st.integers(1, 39),
)
def test_quantiles_by_counting_are_exact_and_add_up(values: list[float], share: float, cut: int) -> None:
    parts = [torch.tensor(part, dtype=torch.float32) for part in (values[:cut], values[cut:]) if part]
    coarse = [count_coarse(part) for part in parts]
    total = coarse[0] if len(parts) == 1 else coarse[0] + coarse[1]
    fine = [count_quantiles(part, total, (share, 0.5)) for part in parts]
    found = quantile(total, fine[0] if len(parts) == 1 else fine[0] + fine[1], share)
    assert found == pytest.approx(np.quantile(np.array(values), share), rel=1e-12, abs=1e-30)


# --- averages along a run ------------------------------------------------------------------------------------------


def test_ema_is_its_recurrence_and_its_ends_are_first_and_last() -> None:
    _, run = models(5)
    for decay in (0.0, 0.3, 0.9, 1.0):
        merged = merge("ema", run, decay=decay)
        for name in run[0]:
            value = run[0][name].double()
            for state in run[1:]:
                value = decay * value + (1 - decay) * state[name].double()
            same(merged[name], value)
    assert all(torch.equal(merge("ema", run, decay=0.0)[n], run[-1][n]) for n in run[0])
    assert all(torch.equal(merge("ema", run, decay=1.0)[n], run[0][n]) for n in run[0])


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.integers(1, 30), st.booleans())
def test_run_averages_have_shares_that_add_up_to_one(decay: float, count: int, debias: bool) -> None:
    every = (Ema(decay=decay, debias=debias), Lawa(window=3), Swa(every=2))
    for method in every:
        shares = method.shares(count)
        assert len(shares) == count and min(shares) >= 0
        assert math.fsum(shares) == pytest.approx(1.0)


def test_ema_without_bias_starts_from_nothing() -> None:
    decay, value = 0.6, 0.0
    for x in (3.0, 1.0, 4.0):
        value = decay * value + (1 - decay) * x
    run = vectors([3.0], [1.0], [4.0])
    same(merge("ema", run, decay=decay, debias=True)["w"], [value / (1 - decay**3)])


def test_lawa_and_swa_choose_their_checkpoints() -> None:
    run = vectors(*([float(2**k)] for k in range(6)))
    assert float(merge("lawa", run, window=1)["w"]) == 32
    assert float(merge("lawa", run, window=2)["w"]) == 24
    assert float(merge("lawa", run, window=50)["w"]) == 63 / 6
    assert float(merge("swa", run, start=1, every=2)["w"]) == pytest.approx((2 + 8 + 32) / 3)
    assert float(merge("checkpoint_average", run)["w"]) == 63 / 6
    with pytest.raises(RecipeError, match="6 checkpoints"):
        merge("swa", run, start=6)


def test_swa_ignores_the_order_and_averages_a_straight_run_exactly() -> None:
    _, run = models(4)
    there, back = merge("swa", run), merge("swa", run[::-1])
    assert all(torch.equal(there[n], back[n]) for n in there)
    first, step = run[0], run[1]
    line = [{n: first[n].double() + k * step[n].double() for n in first} for k in range(5)]
    assert all(torch.allclose(merge("swa", line)[n], line[2][n], rtol=1e-14) for n in first)


def test_run_averages_keep_differences_that_float32_sums_lose() -> None:
    run = [{"w": torch.tensor([1.0 + k * 2.0**-22])} for k in range(1001)]
    assert float(merge("swa", run)["w"]) == 1.0 + 500 * 2.0**-22


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=8),
    st.floats(0, 50),
    st.sampled_from(["lower", "higher"]),
    st.sampled_from(["power", "softmax"]),
)
def test_mwa_shares_add_up_and_follow_the_metric(metrics: list[float], penalty: float, better: Any, rule: Any) -> None:
    shares = Mwa(metric=tuple(metrics), better=better, penalty=penalty, rule=rule).shares(len(metrics))
    assert math.fsum(shares) == pytest.approx(1.0)
    order = sorted(range(len(metrics)), key=lambda i: metrics[i], reverse=better == "lower")
    ranked = [shares[i] for i in order]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(ranked))
    if penalty == 0:
        assert ranked[0] == pytest.approx(ranked[-1])


def test_mwa_by_hand_and_its_refusals() -> None:
    run = vectors([1.0], [10.0])
    metric = {"expert0": 2.0, "expert1": 1.0}
    same(merge("mwa", run, metric=metric, penalty=2.0)["w"], [(1 / 4 * 1 + 1 * 10) / (5 / 4)])
    same(merge("mwa", run, metric=metric, better="higher")["w"], [(2 * 1 + 10) / 3])
    softmax = math.exp(-2.0), math.exp(-1.0)
    same(merge("mwa", run, metric=metric, rule="softmax")["w"], [(softmax[0] + 10 * softmax[1]) / sum(softmax)])
    same(merge("mwa", run, metric=metric, penalty=1e6)["w"], [10.0])
    same(merge("mwa", run, metric={"expert0": 3.0, "expert1": 3.0})["w"], [5.5])
    for wrong in ({}, {"metric": {"expert0": 1.0}}, {"metric": {"expert0": 1.0, "expert1": 0.0}}):
        with pytest.raises(RecipeError, match="metric"):
            merge("mwa", run, **wrong)


# --- layer swapping, FRANK -----------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=4, max_size=4), st.sampled_from(["language", "task", "average"]))
def test_layer_swapping_takes_every_tensor_from_its_owner(parts: list[int], outer: str) -> None:
    _, (task, language) = models(2, layers=8, shape=(2, 3))
    bottom, lower, upper, top = parts
    owners = ["l"] * bottom + ["a"] * lower + ["t"] * (8 - sum(parts)) + ["a"] * upper + ["l"] * top
    merged = merge(
        "layer_swapping",
        [task, language],
        bottom=bottom,
        top=top,
        bottom_transition=lower,
        top_transition=upper,
        outer=outer,
    )
    for name, tensor in merged.items():
        owner = owners[int(name.split(".")[2])] if ".layers." in name else outer[0]
        wanted = {"t": task[name], "l": language[name], "a": (task[name] + language[name]) / 2}[owner]
        assert torch.equal(tensor, wanted), name


def test_layer_swapping_refuses_more_layers_than_there_are_and_takes_exactly_all() -> None:
    _, pair = models(2, layers=8)
    with pytest.raises(RecipeError, match="takes 9 layers"):
        merge("layer_swapping", pair)
    merge("layer_swapping", pair, bottom=4)
    with pytest.raises(RecipeError, match="exactly 2"):
        merge("layer_swapping", [*pair, pair[0]], bottom=4)


def frank_by_hand(base: State, vision: State, reasoning: State, weights: list[tuple[float, float]]) -> State:
    merged = {}
    for name, weight in base.items():
        if ".layers." not in name:
            merged[name] = vision[name].double()
            continue
        layer = int(name.split(".")[2])
        members = [n for n in base if f".layers.{layer}." in n]
        norms = [
            sum(float((e[n].double() - base[n].double()).square().sum()) for n in members) for e in (vision, reasoning)
        ]
        (wv, wr), (nv, nr) = weights[layer], norms
        # the paper's objective, minimised numerically over λ_V with λ_R = 1 − λ_V: a quadratic through three points
        cost = [wv * nv * (1 - x) ** 2 + wr * nr * x**2 for x in (0.0, 0.5, 1.0)]
        share = (3 * cost[0] - 4 * cost[1] + cost[2]) / (4 * (cost[0] - 2 * cost[1] + cost[2]))
        w = weight.double()
        merged[name] = w + share * (vision[name].double() - w) + (1 - share) * (reasoning[name].double() - w)
    return merged


def test_frank_minimises_its_objective_with_and_without_a_prior() -> None:
    base, (vision, reasoning) = models(2)
    vision = {n: base[n] + 3 * (w - base[n]) for n, w in vision.items()}
    attention = [0.5, 0.2, 0.15, 0.02]
    decay = -float(np.polyfit(range(4), np.log(attention), 1)[0])
    fading = np.exp(-decay * np.arange(4))
    cases: list[tuple[dict[str, Any], list[float] | None]] = [
        ({}, None),
        ({"attention": attention}, list(fading / fading.sum())),
        ({"decay": decay}, list(fading / fading.sum())),
        ({"attention": attention, "prior": "relative"}, [a / 0.5 for a in attention]),
        ({"decay": 0.7, "prior": "relative"}, list(np.exp(-0.7 * np.arange(4)))),
    ]
    for parameters, prior in cases:
        weights = [(1.0, 1.0)] * 4 if prior is None else [(w, 1 - w) for w in prior]
        wanted = frank_by_hand(base, vision, reasoning, weights)
        merged = merge("frank", [vision, reasoning], base, **parameters)
        for name in base:
            same(merged[name], wanted[name], 2e-6)


def test_frank_gives_the_vision_expert_where_the_other_has_not_moved() -> None:
    base, (vision, _) = models(2)
    merged = merge("frank", [vision, base], base)
    for name in base:
        same(merged[name], vision[name])


def test_frank_fits_the_decay_and_refuses_wrong_attention() -> None:
    assert fit_decay([3 * math.exp(-0.4 * l) for l in range(7)]) == pytest.approx(0.4)
    assert fit_decay([2.0]) == 0.0
    assert Frank(decay=0.0)._prior(2, 5) == pytest.approx((0.2, 0.8))
    base, pair = models(2)
    for wrong, word in (([0.1, 0.2], "has 4"), ([0.1, 0.2, 0.0, 1.0], "positive")):
        with pytest.raises(RecipeError, match=word):
            merge("frank", pair, base, attention=wrong)


# --- WIDEN ---------------------------------------------------------------------------------------------------------


def widen_by_hand(base: Tensor, experts: list[Tensor], ratio: float, score: float) -> np.ndarray:
    origin = base.double().numpy()
    n = origin.shape[1]

    def scores(columns: list[list[float]]) -> np.ndarray:
        ranks = np.zeros((len(experts), n))
        for i, change in enumerate(columns):
            for position, j in enumerate(sorted(range(n), key=lambda j: (change[j], j))):
                ranks[i, j] = position / n
        found = np.exp(ranks) / np.exp(ranks).sum(0)
        found[ranks > ratio * ranks.mean(1, keepdims=True)] = score
        return found

    length, turn = [], []
    for expert in experts:
        w = expert.double().numpy()
        norms = [(np.linalg.norm(w[:, j]), np.linalg.norm(origin[:, j])) for j in range(n)]
        length.append([abs(a - b) for a, b in norms])
        turn.append([1 - w[:, j] @ origin[:, j] / (a * b) for j, (a, b) in enumerate(norms)])
    share = (scores(length) + scores(turn)) / 2
    return origin + sum(share[i] * (e.double().numpy() - origin) for i, e in enumerate(experts))


@pytest.mark.parametrize(("ratio", "score"), [(1.0, 1.0), (1.5, 0.5), (0.2, 1.0)])
def test_widen_by_hand_and_embeddings_by_token(ratio: float, score: float) -> None:
    base, experts = models(3)
    merged = merge("widen", experts, base, ratio=ratio, score=score)
    name = "model.layers.1.mlp.up_proj.weight"
    same(merged[name], widen_by_hand(base[name], [e[name] for e in experts], ratio, score))
    name = "model.embed_tokens.weight"
    same(merged[name], widen_by_hand(base[name].T, [e[name].T for e in experts], ratio, score).T)
    name = "model.norm.weight"
    deltas = np.stack([(e[name].double() - base[name].double()).numpy() for e in experts])
    share = np.exp(abs(deltas)) / np.exp(abs(deltas)).sum(0)
    share[abs(deltas) > ratio * abs(deltas).mean(1, keepdims=True)] = score
    same(merged[name], base[name].double().numpy() + (share * deltas).sum(0))


def test_widen_without_calibration_averages_and_equal_experts_come_back() -> None:
    base, (expert, _) = models(2)
    merged = merge("widen", [expert, expert], base, ratio=1e9)
    for name in base:
        same(merged[name], expert[name])


def test_widen_ranks_unmoved_columns_in_their_order() -> None:
    """The cosine of a column with itself is 1 up to rounding, which must not decide what the other expert gets."""
    g = torch.Generator().manual_seed(3)
    base = {"w": torch.randn(30, 24, generator=g)}
    moved = {"w": base["w"] + 0.1 * torch.randn(30, 24, generator=g)}
    merged = merge("widen", [base, moved], base, ratio=1e9)["w"]
    ranks = []
    for change in (
        (np.linalg.norm(moved["w"].numpy(), axis=0) - np.linalg.norm(base["w"].numpy(), axis=0)).__abs__(),
        1 - torch.cosine_similarity(moved["w"].double(), base["w"].double(), dim=0).numpy(),
    ):
        ranks.append(np.argsort(np.argsort(change, kind="stable")) / 24)
    still = np.arange(24) / 24  # all changes are 0
    share = np.mean([1 / (1 + np.exp(still - rank)) for rank in ranks], axis=0)
    same(merged, base["w"].double().numpy() + share * (moved["w"] - base["w"]).double().numpy(), 1e-6)


def test_widen_survives_padded_tokens() -> None:
    base, experts = models(2)
    name = "model.embed_tokens.weight"
    for state in (base, *experts):
        state[name][-2:] = 0.0
    experts[0][name][-1] = 1.0
    merged = merge("widen", experts, base)[name]
    assert bool(torch.isfinite(merged).all())
    assert torch.equal(merged[-2], torch.zeros(5))  # unchanged everywhere
    same(merged[-1], torch.ones(5))  # the most changed column of one model, whole


# --- geometric means -----------------------------------------------------------------------------------------------


def great_circle(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    omega = math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)


@pytest.mark.parametrize("scope", ["tensor", "row", "column"])
@pytest.mark.parametrize("based", [True, False])
def test_nuslerp_follows_great_circles_of_its_scope(scope: str, based: bool) -> None:
    base, pair = models(2)
    merged = merge("nuslerp", pair, base if based else None, weights=[1.0, 3.0], scope=scope)
    for name, weight in base.items():
        origin = weight.double().numpy() * based
        a, b = (e[name].double().numpy() - origin for e in pair)
        if scope == "tensor" or a.ndim == 1:
            wanted = great_circle(a.ravel(), b.ravel(), 0.75).reshape(a.shape)
        elif scope == "row":
            wanted = np.stack([great_circle(x, y, 0.75) for x, y in zip(a, b, strict=True)])
        else:
            wanted = np.stack([great_circle(x, y, 0.75) for x, y in zip(a.T, b.T, strict=True)]).T
        same(merged[name], origin + wanted, 2e-6)


def test_nuslerp_is_straight_where_there_is_no_angle_and_its_weights_give_t() -> None:
    for b, wanted in (([2.0, 4.0], [1.25, 2.5]), ([-1.0, -2.0], [0.5, 1.0]), ([0.0, 0.0], [1.0, 2.0])):
        a, b_ = vectors([1.0, 2.0], b)
        if b == [0.0, 0.0]:  # a zero vector stands at a right angle to everything: only a's sine counts
            wanted = [math.sin(0.75 * math.pi / 2) * x for x in wanted]
        same(merge("nuslerp", [a, b_], weights=[3.0, 1.0])["w"], wanted)
    a, b_ = vectors([1.0, 0.0], [0.0, 1.0])
    same(merge("nuslerp", [a, b_], weights=[1.0, 0.0])["w"], [1.0, 0.0])
    same(merge("nuslerp", [a, b_], weights=[0.0, 2.0])["w"], [0.0, 1.0])
    same(merge("nuslerp", [a, b_], weights=[1.0, -1.0])["w"], [math.sqrt(0.5)] * 2)


def test_slerp_of_equal_tensors_is_straight_whatever_counts_as_colinear() -> None:
    w = torch.tensor([3.0, -4.0, 12.0])
    same(merge("slerp", [{"w": w}, {"w": w}], t=0.7, colinear=1.0)["w"], w)


def test_nuslerp_columns_of_a_convolution_run_along_its_first_dimension() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 2, 3))
    merged = merge("nuslerp", [{"w": torch.tensor(a)}, {"w": torch.tensor(b)}], scope="column")["w"]
    for index in np.ndindex(2, 3):
        same(merged[(slice(None), *index)], great_circle(a[(slice(None), *index)], b[(slice(None), *index)], 0.5))


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_multislerp_equals_the_exponential_map_it_replaces(based: bool, normalize: bool) -> None:
    base, experts = models(3)
    given_weights = [0.5, 0.3, 0.4]
    merged = merge("multislerp", experts, base if based else None, weights=given_weights, normalize=normalize)
    w = np.array(given_weights) / (sum(given_weights) if normalize else 1.0)
    for name, weight in base.items():
        origin = weight.double().numpy().ravel() * based
        x = np.stack([e[name].double().numpy().ravel() for e in experts]) - origin
        u = x / np.linalg.norm(x, axis=1, keepdims=True)
        m = w @ u / np.linalg.norm(w @ u)
        tangent = w @ (u - np.outer(u @ m, m))
        angle = np.linalg.norm(tangent) + 1e-8
        length = w @ np.linalg.norm(x, axis=1)
        wanted = (m * math.cos(angle) + tangent * math.sin(angle) / angle) * length
        same(merged[name].reshape(-1), origin + wanted, 2e-6)
        if normalize:
            assert np.linalg.norm(merged[name].double().numpy().ravel() - origin) == pytest.approx(length, rel=1e-5)


def test_multislerp_falls_back_to_the_sum_where_directions_cancel() -> None:
    a, b = vectors([1.0, 2.0], [-3.0, -6.0])
    same(merge("multislerp", [a, b])["w"], [-1.0, -2.0])
    with pytest.raises(RecipeError, match="add up to 0"):
        merge("multislerp", [a, b], weights=[1.0, -1.0])


def karcher_by_hand(x: np.ndarray, steps: int = 200) -> np.ndarray:
    length = np.linalg.norm(x, axis=1)
    u = x / length[:, None]
    mean = u.mean(0) / np.linalg.norm(u.mean(0))
    for _ in range(steps):
        angle = np.arccos(np.clip(u @ mean, -1, 1))
        tangent = np.mean([a / math.sin(a) * (v - math.cos(a) * mean) for a, v in zip(angle, u, strict=True)], axis=0)
        step = np.linalg.norm(tangent)
        if step < 1e-14:
            break
        mean = math.cos(step) * mean + math.sin(step) * tangent / step
    return mean * length.mean()


def test_karcher_is_the_fixed_point_of_the_iteration_on_whole_vectors() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 30)) + 0.7
    x *= np.array([1.0, 2.0, 0.5, 1.5])[:, None]
    merged = merge("karcher", [{"w": torch.tensor(row)} for row in x], max_iter=200, tolerance=1e-13)["w"]
    same(merged, karcher_by_hand(x), 1e-10)
    for steps in (1, 2, 3):
        early = merge("karcher", [{"w": torch.tensor(row)} for row in x], max_iter=steps, tolerance=1e-13)["w"]
        same(early, karcher_by_hand(x, steps), 1e-12)
    assert float(merged.norm()) == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-12)
    backwards = merge("karcher", [{"w": torch.tensor(row)} for row in x[::-1]], max_iter=200, tolerance=1e-13)["w"]
    same(backwards, merged, 1e-12)


def test_karcher_of_two_equal_lengths_is_slerp_and_of_equal_models_themselves() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 12))
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    pair = [{"w": torch.tensor(a)}, {"w": torch.tensor(b)}]
    same(merge("karcher", pair, tolerance=1e-12)["w"], great_circle(a, b, 0.5), 1e-10)
    same(merge("karcher", [pair[0]] * 3)["w"], a, 1e-10)


def test_karcher_counts_zero_tensors_only_in_the_length_and_survives_opposites() -> None:
    states = vectors([3.0, 4.0], [0.0, 0.0])
    same(merge("karcher", states)["w"], [1.5, 2.0])
    same(merge("karcher", vectors([0.0, 0.0], [0.0, 0.0]))["w"], [0.0, 0.0])
    same(merge("karcher", vectors([1.0, 0.0], [-3.0, 0.0]))["w"], [2.0, 0.0])
    with pytest.raises(RecipeError, match="negative"):
        merge("karcher", states, weights=[1.0, -0.5])


def test_gram_matrices_hold_every_inner_product() -> None:
    rng = torch.Generator().manual_seed(0)
    values = [torch.randn(7, 11, generator=rng) for _ in range(3)]
    flat = torch.stack([v.reshape(-1) for v in values]).double()
    same(gram_matrix(gram(values)), flat @ flat.mT, 1e-12)
    rows = gram_rows(values)
    for r in range(7):
        x = torch.stack([v[r] for v in values]).double()
        same(rows[r], x @ x.mT, 1e-12)
    assert torch.equal(cosines(torch.tensor([[0.0, 0.0], [0.0, 4.0]], dtype=torch.float64))[0], torch.zeros(2).double())


@pytest.mark.parametrize(
    "name", ["karcher", "multislerp", "nuslerp", "model_stock", "lines", "frank", "layer_swapping"]
)
def test_geometric_methods_go_in_blocks(name: str) -> None:
    base, _ = sample_models(1)
    from plait.architectures import roles_of

    method = find(name)(**find(name).example)
    for key, role in roles_of(base).items():
        assert method.unit(Subject(key, tuple(base[key].shape), role)) == "element"


# --- OrthoMerge ----------------------------------------------------------------------------------------------------


def rotation(size: int, angle: float, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    skew = torch.randn(size, size, generator=rng, dtype=torch.float64)
    return torch.linalg.matrix_exp(angle * (skew - skew.mT) / size)


def turned(count: int, rows: int, columns: int, angle: float = 0.3) -> tuple[Tensor, list[Tensor]]:
    rng = torch.Generator().manual_seed(9)
    base = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    return base, [base @ rotation(columns, angle, i) for i in range(count)]


def orthomerge(base: Tensor, experts: list[Tensor], **parameters: Any) -> Tensor:
    return merge("orthomerge", [{"a.weight": e} for e in experts], {"a.weight": base}, **parameters)["a.weight"]


def test_cayley_and_its_inverse_undo_each_other() -> None:
    r = rotation(8, 0.7, 0)
    skew = cayley(r)
    assert torch.equal(skew, -skew.mT)
    same(rotation_of(skew), r, 1e-12)


@pytest.mark.parametrize("columns", [6, 10])
def test_closest_rotation_finds_a_planted_one_and_leaves_unseen_directions(columns: int) -> None:
    base, _ = turned(1, 20, 6)
    r = torch.eye(columns, dtype=torch.float64)
    r[:6, :6] = rotation(6, 0.4, 3)
    wide = torch.nn.functional.pad(base, (0, columns - 6))
    found = closest_rotation(svd(wide.mT @ (wide @ r)))
    assert found is not None
    same(found, r, 1e-10)


def test_closest_rotation_refuses_half_turns_and_turns_reflections_into_rotations() -> None:
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    assert closest_rotation(svd(half)) is None
    assert closest_rotation(svd(torch.zeros(3, 3, dtype=torch.float64))) is None
    mirror = torch.diag(torch.tensor([3.0, 2.0, -0.1], dtype=torch.float64))
    found = closest_rotation(svd(mirror))
    assert found is not None
    same(found, torch.eye(3), 1e-12)


def test_orthomerge_of_rotated_experts_has_no_residual_and_keeps_the_gram_matrix() -> None:
    base, experts = turned(3, 20, 8)
    merged = orthomerge(base, experts, rotate="all", lambda_=0.0)
    same(merged @ merged.mT, base @ base.mT, 1e-10)
    assert float((merged - base).norm()) > 0.05 * float(base.norm())
    same(orthomerge(base, experts, rotate="all", lambda_=5.0), merged, 1e-10)
    for rotate in ("all", "conflicting"):
        noisy = [
            e + 0.05 * torch.randn(20, 8, generator=torch.Generator().manual_seed(i)) for i, e in enumerate(experts)
        ]
        kept = orthomerge(base, noisy, rotate=rotate, lambda_=0.0)
        same(kept @ kept.mT, base @ base.mT, 1e-10)


@pytest.mark.parametrize("shape", [(20, 8), (8, 8), (5, 12)])
@pytest.mark.parametrize("rotate", ["all", "conflicting"])
def test_orthomerge_of_one_expert_or_equal_ones(shape: tuple[int, int], rotate: str) -> None:
    rng = torch.Generator().manual_seed(5)
    base = torch.randn(shape, generator=rng, dtype=torch.float64)
    expert = base + 0.1 * torch.randn(shape, generator=rng, dtype=torch.float64)
    same(orthomerge(base, [expert], rotate=rotate, lambda_=1.0), expert, 1e-10)
    alone = orthomerge(base, [expert], rotate=rotate, lambda_=0.0)
    same(orthomerge(base, [expert] * 3, rotate=rotate, lambda_=0.0), alone, 1e-10)


@pytest.mark.parametrize("rotate", ["all", "conflicting"])
def test_orthomerge_is_stable_where_outputs_are_fewer_than_inputs(rotate: str) -> None:
    rng = torch.Generator().manual_seed(6)
    base = torch.randn(10, 25, generator=rng, dtype=torch.float64)
    experts = [base + 0.1 * torch.randn(10, 25, generator=rng, dtype=torch.float64) for _ in range(3)]
    merged = orthomerge(base, experts, rotate=rotate)
    jittered = [e + 1e-7 * torch.randn(10, 25, generator=rng, dtype=torch.float64) for e in experts]
    moved = float((orthomerge(base, jittered, rotate=rotate) - merged).norm())
    assert moved <= 1e-4 * float((merged - base).norm())


@pytest.mark.parametrize(("name", "option"), [("model.embed_tokens.weight", "embeddings"), ("lm_head.weight", "head")])
def test_orthomerge_rotates_embeddings_and_heads_only_where_asked(name: str, option: str) -> None:
    base = torch.linspace(-1, 1, 60, dtype=torch.float64).view(10, 6).sin()
    experts = [base @ rotation(6, 0.3, i) for i in range(3)]
    named: list[dict[str, Tensor]] = [{name: expert} for expert in experts]
    plain = merge("orthomerge", named, {name: base})[name]
    same(plain, base + 0.2 * sum(expert - base for expert in experts))
    mean = merge("orthomerge", named, {name: base}, residual="tsv", lambda_=1.0)[name]
    same(mean, sum(experts[1:], experts[0]) / 3)
    rotated = merge("orthomerge", named, {name: base}, **{option: "spectral"})[name]
    same(rotated, orthomerge(base, experts))
    assert float((rotated - plain).norm()) > 1e-3


def test_orthomerge_without_matrices_or_beyond_its_width_is_task_arithmetic() -> None:
    base, experts = models(3)
    merged = merge("orthomerge", experts, base, widest=4)
    vectors_only = merge("orthomerge", experts, base)
    for name, wanted in merge("task_arithmetic", experts, base, lambda_=0.2).items():
        same(merged[name], wanted)
        if wanted.ndim == 1:
            same(vectors_only[name], wanted)
    tsv = merge("orthomerge", experts, base, residual="tsv", lambda_=1.0)
    for name, wanted in merge("task_arithmetic", experts, base, lambda_=1 / 3).items():
        if wanted.ndim == 1:
            same(tsv[name], wanted)
