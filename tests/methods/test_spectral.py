"""What the papers of singular vectors, isotropic spectra, WUDI, OPCM, DOGE, KnOTS and Core Space promise."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import plait
from plait.architectures import Role
from plait.errors import RecipeError
from plait.methods import Group, Subject, find, methods
from plait.methods._spectral import SpectralCombiner, noise
from plait.tensors.descent import adam, momentum
from plait.tensors.factors import exact_factor, factor, polar
from plait.tensors.spectral import normal_equations, rounding_floor, svd
from plait.tensors.spectrum import RankRule, effective_rank
from plait.tensors.subspaces import combine_subspaces, common_columns, gram_whitening

NAME = "model.layers.0.mlp.up_proj.weight"
SPECTRAL = sorted(name for name, cls in methods().items() if issubclass(cls, SpectralCombiner))
Deltas = list[Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def deltas_of(count: int = 3, m: int = 12, n: int = 9, rank: int | None = None, seed: int = 0) -> Deltas:
    """Task vectors of a matrix in float64; with `rank`, adapters."""
    if rank is None:
        return [0.1 * random(m, n, seed=seed + i) for i in range(count)]
    return [0.1 * random(m, rank, seed=seed + i) @ random(rank, n, seed=seed + i + 50) for i in range(count)]


def update(method: Any, deltas: Deltas, base: Tensor | None = None, name: str = NAME, **options: Any) -> Tensor:
    """The merged task vector of one matrix, through the public path."""
    origin = torch.zeros_like(deltas[0]) if base is None else base
    experts = [{name: origin + delta} for delta in deltas]
    return plait.merge_state_dicts(method, experts, {name: origin}, **options)[name] - origin


def close(ours: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    error = float((ours.double() - wanted.double()).norm()) / max(float(wanted.double().norm()), 1e-300)
    assert error <= tolerance, error


def orthogonal(n: int, seed: int = 7) -> Tensor:
    return torch.linalg.qr(random(n, n, seed=seed))[0]


# --- the policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECTRAL)
def test_only_matrices_are_seen_whole(name: str) -> None:
    cls = find(name)
    method = cls(**cls.example, embeddings="mean", head="mean")
    inside = Role("mlp", "model.layers", 0, 1)
    assert method.unit(Subject(NAME, (12, 9), inside)) == "tensor"
    for shape in ((9,), (2, 3, 4), (), (0, 4)):
        assert method.unit(Subject(NAME, shape, inside)) == "element"
    assert method.unit(Subject("model.embed_tokens.weight", (12, 9), Role("embedding"))) == "element"
    assert cls(**cls.example, head="spectral").unit(Subject("lm_head.weight", (12, 9), Role("head"))) == "tensor"


@pytest.mark.parametrize(("treatment", "factor"), [("mean", 1 / 3), ("sum", 1.0), ("base", 0.0)])
def test_tensors_without_the_step_are_averaged_summed_or_left(treatment: str, factor: float) -> None:
    deltas = deltas_of()
    wanted = 0.5 * factor * sum(deltas)
    options = {"lambda": 0.5, "embeddings": treatment, "others": treatment}
    close(update("iso_c", deltas, name="model.embed_tokens.weight", **options), wanted)
    flat = [delta[0] for delta in deltas]
    close(update("iso_c", flat, name="model.norm.weight", **options), wanted[0])


@pytest.mark.parametrize("name", ["tsv_merge", "iso_c", "iso_cts", "dc_merge", "wudi", "iwudi", "core_space", "knots"])
def test_weights_scale_the_deltas(name: str) -> None:
    deltas = deltas_of()
    scaled = [delta * weight for delta, weight in zip(deltas, (0.5, 2.0, -1.0), strict=True)]
    close(update(name, deltas, weights=[0.5, 2.0, -1.0]), update(name, scaled), 1e-7)


@pytest.mark.parametrize(
    "name", ["tsv_merge", "iso_c", "iso_cts", "dc_merge", "iwudi", "knots", "core_space", "r_tsvm"]
)
def test_scaling_all_deltas_scales_the_merge(name: str) -> None:
    deltas = deltas_of()
    close(update(name, [3 * delta for delta in deltas]), 3 * update(name, deltas), 1e-7)


@pytest.mark.parametrize("name", ["tsv_merge", "iso_c", "iso_cts", "dc_merge", "svc", "wudi", "knots", "core_space"])
def test_a_rotation_of_the_outputs_rotates_the_merge(name: str) -> None:
    """θ₀ → Qθ₀, θᵢ → Qθᵢ gives Q times the merge. WUDI's Adam sees coordinates: its closed form stands in."""
    method: Any = {"svc": ["task_arithmetic", "svc"], "wudi": "swudi"}.get(name, name)
    q, deltas, base = orthogonal(12), deltas_of(), random(12, 9, seed=99)
    options = {"density": 1.0} if name in ("dc_merge", "knots") else {}
    turned = update(method, [q @ delta for delta in deltas], q @ base, **options)
    close(turned, q @ update(method, deltas, base, **options), 1e-7)


@pytest.mark.parametrize("name", ["tsv_merge", "iso_c", "iso_cts", "core_space"])
def test_dense_adapters_do_not_lift_rounding(name: str) -> None:
    """Adapters added to float32 weights leave rounding in every direction; merging must not turn it into signal."""
    deltas, base = deltas_of(m=40, n=32, rank=2), random(40, 32, seed=99)
    exact = update(name, deltas)
    rounded = [(base + delta).float() for delta in deltas]
    merged = plait.merge_state_dicts(name, [{NAME: r} for r in rounded], {NAME: base.float()})[NAME]
    assert torch.linalg.matrix_rank(exact) <= 6
    close(merged.double() - base, exact, 1e-4)


# --- primitives ----------------------------------------------------------------------------------------------------


@given(m=st.integers(1, 9), n=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_polar_is_the_closest_orthonormal_factor(m: int, n: int, seed: int) -> None:
    a = random(m, n, seed=seed)
    p = polar(a)
    assert torch.allclose(torch.linalg.svdvals(p), torch.ones(min(m, n), dtype=torch.float64))
    stretch = p.mT @ a  # symmetric and positive semidefinite: A = P · (PᵀA)
    assert torch.allclose(stretch, stretch.mT, atol=1e-9)
    assert float(torch.linalg.eigvalsh(stretch).min()) > -1e-9


def test_polar_leaves_what_is_not_reached_at_zero() -> None:
    column = random(6, 1)
    repeated = polar(torch.cat([column, column], dim=1))
    close(repeated, torch.cat([column, column], dim=1) / (column.norm() * 2**0.5))
    assert not polar(torch.zeros(4, 3)).any()


@given(seed=st.integers(0, 99), k=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_the_gram_route_equals_the_svd_route(seed: int, k: int) -> None:
    """Within 2e-5 in float32 while condition numbers stay below a thousand."""
    u = orthogonal(12, seed)[:, :k] * torch.logspace(0, -3, k, dtype=torch.float64)
    a = (u @ orthogonal(k, seed + 1)).float()
    close(a @ gram_whitening(a), polar(a.double()), 1e-3)
    close(a @ gram_whitening(a), polar(a), 1e-3)
    well = (orthogonal(12, seed)[:, :k] * torch.linspace(1, 0.1, k, dtype=torch.float64)).float()
    close(well @ gram_whitening(well), polar(well.double()), 2e-6)


def test_the_gram_route_drops_repeated_columns_too() -> None:
    a = random(6, 2)
    doubled = torch.cat([a, a], dim=1)
    close(doubled @ gram_whitening(doubled), polar(doubled), 1e-6)


@pytest.mark.parametrize("shape", [(7, 5), (20, 4)])
def test_common_columns_equal_those_of_the_concatenation(shape: tuple[int, int]) -> None:
    matrices = [random(*shape, seed=i) for i in range(3)]
    u, s = common_columns(matrices)
    wanted = svd(torch.cat(matrices, dim=1))
    assert torch.allclose(s, wanted.s, rtol=1e-8)
    close(u @ u.mT, wanted.u @ wanted.u.mT, 1e-8)
    low = [random(20, 2, seed=9) @ random(2, 8, seed=i) for i in range(3)]
    assert common_columns(low)[0].shape == (20, 2)
    assert common_columns(low, cutoff=1e9)[0].shape == (20, 0)


def test_the_rounding_floor_bounds_what_subtraction_leaves() -> None:
    base, small = random(60, 40).float(), (1e-3 * random(60, 40, seed=1)).float()
    noise = ((base + small) - base).double() - small.double()
    norm = float(torch.linalg.matrix_norm(noise, 2))
    assert 0.01 * rounding_floor(base) < norm < rounding_floor(base)


def test_adam_and_momentum_are_those_of_torch() -> None:
    a, b = random(5, 4), random(5, 4, seed=1)
    cases: list[tuple[Any, Any]] = [
        (adam, lambda x: torch.optim.Adam([x], lr=0.01)),
        (momentum, lambda x: torch.optim.SGD([x], lr=0.01, momentum=0.9)),
    ]
    for ours, make in cases:
        x = a.clone().requires_grad_()
        optimiser = make(x)
        for _ in range(20):
            optimiser.zero_grad()
            ((x - b) ** 2 * (1 + b**2)).sum().backward()
            optimiser.step()
        close(ours(a, lambda y: 2 * (y - b) * (1 + b**2), 20, 0.01), x.detach(), 1e-9)


def test_normal_equations_are_the_gradient_of_the_loss() -> None:
    x, y, squares = deltas_of(), deltas_of(seed=20), [1.0, 2.0, 0.5]
    c, d = normal_equations(x, y, squares)
    m = random(12, 9, seed=40).requires_grad_()
    loss = sum((((m - b) @ a.mT) ** 2).sum() / s for a, b, s in zip(x, y, squares, strict=True))
    assert isinstance(loss, Tensor)
    loss.backward()
    assert m.grad is not None
    close(2 * (m.detach() @ c - d), m.grad)
    assert not normal_equations(x, y, [0.0] * 3)[0].any()


# --- TSV-Merge -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orthogonalize", ["svd", "gram"])
def test_tsv_equals_a_float64_derivation(orthogonalize: str) -> None:
    deltas = deltas_of()
    u, s, v = [], [], []
    for delta in deltas:
        left, values, right = np.linalg.svd(delta.numpy(), full_matrices=False)
        u, s, v = [*u, left[:, :3]], [*s, values[:3]], [*v, right[:3]]

    def whiten(a: Any) -> Any:  # A (AᵀA)^(-1/2)
        values, basis = np.linalg.eigh(a.T @ a)
        return a @ basis @ np.diag(values**-0.5) @ basis.T

    wanted = whiten(np.hstack(u)) @ np.diag(np.hstack(s)) @ whiten(np.vstack(v).T).T
    close(update("tsv_merge", deltas, orthogonalize=orthogonalize), torch.from_numpy(wanted), 1e-7)


def test_tsv_of_orthogonal_experts_is_their_sum() -> None:
    q, p = orthogonal(12), orthogonal(9, 3)
    deltas = [q[:, 3 * i : 3 * i + 2] @ torch.diag(random(2, seed=i).abs()) @ p[3 * i : 3 * i + 2] for i in range(3)]
    close(update("tsv_merge", deltas), deltas[0] + deltas[1] + deltas[2], 1e-7)


def test_tsv_has_the_kept_singular_values_of_all_experts() -> None:
    """Both sides are orthonormal, so the singular values of M are exactly the concatenated ones."""
    deltas = deltas_of()
    merged = torch.linalg.svdvals(update("tsv_merge", deltas))
    kept = torch.cat([torch.linalg.svdvals(delta)[:3] for delta in deltas])
    assert torch.allclose(merged, kept.sort(descending=True).values, rtol=1e-7)


def test_tsv_of_equal_experts_is_the_truncated_expert() -> None:
    (delta,) = deltas_of(1)
    for route in ("svd", "gram"):
        close(update("tsv_merge", [delta] * 3, orthogonalize=route), svd(delta).top(3).matrix(), 1e-6)


def test_tsv_with_more_experts_than_rank_keeps_one_triplet_each() -> None:
    deltas = deltas_of(6, 5, 4)
    merged = update("tsv_merge", deltas)
    assert float(merged.norm()) > 0
    close(merged, combine_subspaces([svd(delta).top(1) for delta in deltas]), 1e-7)


def test_tsv_without_orthogonalisation_is_the_sum_of_truncations() -> None:
    deltas = deltas_of()
    wanted = sum(svd(delta).top(3).matrix() for delta in deltas)
    assert isinstance(wanted, Tensor)
    close(update("tsv_merge", deltas, orthogonalize="none"), wanted)
    close(update("tsv_merge", deltas, orthogonalize="none", rank_fraction=1.0), sum(deltas[1:], deltas[0]))


def test_r_tsvm_of_equally_dense_experts_with_equal_outliers_is_tsv() -> None:
    """Permuted copies have equal outlier mass and equal sparsity."""
    (delta,) = deltas_of(1, 24, 15)
    delta[0, 0] = 5.0
    deltas = [delta, delta.flip(0), delta.flip(1)]
    close(update("r_tsvm", deltas), update("tsv_merge", deltas), 1e-7)


def test_r_tsvm_gives_rank_to_the_dense_and_weight_to_the_outliers() -> None:
    dense, sparse = random(12, 12), torch.zeros(12, 12, dtype=torch.float64)
    sparse[0, :] = random(12, seed=3)  # 12 of 144 entries moved
    sparse[0, 0] = 40.0  # the only outlier of both
    method: Any = find("r_tsvm")()
    ranks = method._ranks([dense, sparse])
    assert ranks[0] > 8 and ranks[1] >= 1 and sum(ranks) <= 13
    shares = method._shares([dense, sparse])
    assert shares[1] > shares[0] and sum(shares) == pytest.approx(2)
    assert method._shares([torch.ones(4, 4), torch.ones(4, 4)]) == [1.0, 1.0]
    zero = torch.zeros_like(dense)
    assert method._shares([dense, zero])[1] in (0.0, 1.0) and method._ranks([dense, zero])[1] == 1


def test_r_tsvm_equals_a_float64_derivation() -> None:
    deltas = deltas_of(2)
    deltas[0][0, :2] = 3.0
    deltas[1][1, 1] = -4.0
    deltas[1][4:] = 0.0
    masses = []
    for delta in deltas:
        size = np.abs(delta.numpy())
        masses.append(size[size > size.mean() + 3 * size.std()].sum())
    limit = 0.1 * np.sqrt(sum((d.numpy() ** 2).sum() for d in deltas) / 216)
    moved = [int((np.abs(d.numpy()) > limit).sum()) for d in deltas]
    parts = []
    for delta, mass, count in zip(deltas, masses, moved, strict=True):
        weight, rank = 2 * float(mass) / float(sum(masses)), 9 * count // sum(moved)
        parts.append(svd(delta * weight).top(rank))
    assert masses[0] != masses[1] and parts[0].s.numel() > parts[1].s.numel() > 0
    close(update("r_tsvm", deltas), combine_subspaces(parts), 1e-8)


# --- Iso -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
def test_iso_has_one_singular_value(name: str) -> None:
    values = torch.linalg.svdvals(update(name, deltas_of()))
    assert float(values[0] / values[-1]) == pytest.approx(1)


def test_iso_c_keeps_nuclear_norm_and_singular_vectors_of_the_sum() -> None:
    deltas = deltas_of()
    merged, total = update("iso_c", deltas), sum(deltas[1:], deltas[0])
    nuclear = torch.linalg.svdvals(total).sum()
    assert float(torch.linalg.svdvals(merged).sum()) == pytest.approx(float(nuclear))
    u, _, v = np.linalg.svd(total.numpy(), full_matrices=False)
    close(merged, torch.from_numpy(u @ v) * nuclear / 9)


def test_iso_cts_with_everything_common_is_iso_c() -> None:
    close(update("iso_cts", deltas_of(), common=1.0), update("iso_c", deltas_of()), 1e-9)


def test_iso_cts_equals_a_float64_derivation() -> None:
    deltas = deltas_of(3, 14, 10)
    left, values, right = np.linalg.svd(sum(d.numpy() for d in deltas), full_matrices=False)
    # c0 = int(10·0.5) = 5; round(5/3) = 2; 6 specific, 4 common directions
    u, s, v = [left[:, :4]], [values[:4]], [right[:4]]
    for delta in deltas:
        rest = delta.numpy() - left[:, :4] @ (left[:, :4].T @ delta.numpy())
        a, b, c = np.linalg.svd(rest, full_matrices=False)
        u, s, v = [*u, a[:, :2]], [*s, b[:2]], [*v, c[:2]]

    def closest(a: Any) -> Any:
        x, _, y = np.linalg.svd(a, full_matrices=False)
        return x @ y

    wanted = np.mean(np.hstack(s)) * closest(np.hstack(u)) @ closest(np.vstack(v))
    close(update("iso_cts", deltas, common=0.5), torch.from_numpy(wanted), 1e-8)


def test_iso_of_adapters_stays_within_their_rank() -> None:
    deltas = deltas_of(rank=2)
    for name in ("iso_c", "iso_cts"):
        assert int(torch.linalg.matrix_rank(update(name, deltas))) == 6
        assert int(torch.linalg.matrix_rank(update(name, deltas, rank=1))) == 3


# --- SVC -----------------------------------------------------------------------------------------------------------


def test_svc_leaves_one_expert_and_halves_a_doubled_one() -> None:
    (delta,) = deltas_of(1)
    close(update(["task_arithmetic", "svc"], [delta]), delta, 1e-8)
    # merged = 2τ, every projection is 2, γ = 2 / (2 + 2)
    close(update(["task_arithmetic", "svc"], [delta, delta]), delta, 1e-8)


def test_svc_equals_a_float64_derivation() -> None:
    deltas = deltas_of()
    merged = 0.3 * sum(d.numpy() for d in deltas)
    u, s, v = np.linalg.svd(merged, full_matrices=False)
    factors = []
    for r in range(9):
        whole, total = u[:, r] @ merged, 0.0
        for delta in deltas:
            own = u[:, r] @ delta.numpy()
            total += max(0.4, float(whole @ own) / float(own @ own))
        factors.append(3 / total)
    wanted = torch.from_numpy(u @ np.diag(np.array(factors) * s) @ v)
    close(update(["task_arithmetic", "svc"], deltas, alpha=0.4, **{"lambda": 0.3}), wanted, 1e-8)


def test_svc_keeps_embeddings_unless_asked() -> None:
    deltas, name = deltas_of(), "model.embed_tokens.weight"
    close(update(["task_arithmetic", "svc"], deltas, name=name), sum(deltas[1:], deltas[0]))
    close(
        update(["task_arithmetic", "svc"], deltas, name=name, embeddings="spectral"),
        update(["task_arithmetic", "svc"], deltas),
    )


# --- DC-Merge ------------------------------------------------------------------------------------------------------


def test_dc_merge_of_one_expert_is_its_truncation() -> None:
    (delta,) = deltas_of(1)
    close(update("dc_merge", [delta], density=1.0, rank=4), svd(delta).top(4).matrix(), 1e-8)


@pytest.mark.parametrize("smoothing", ["avg", "linear"])
def test_dc_merge_smoothing_preserves_energy_and_flattens(smoothing: str) -> None:
    method: Any = find("dc_merge")(smoothing=smoothing)
    values = torch.tensor([20.0, 4.0, 2.0, 1.0])
    smooth = method._smooth(values)
    assert float(smooth.sum()) == pytest.approx(27)
    assert float(smooth[0] / smooth[-1]) == pytest.approx(5.0 if smoothing == "linear" else 1.0)
    assert torch.equal(find("dc_merge")()._smooth(values), values)  # type: ignore[attr-defined]


def test_dc_merge_has_the_experts_rank_and_at_least_one_entry_each() -> None:
    deltas = deltas_of(rank=2)
    assert int(torch.linalg.matrix_rank(update("dc_merge", deltas, density=1.0))) <= 6
    assert int(torch.linalg.matrix_rank(update("dc_merge", deltas, density=1e-9))) == 3


def test_dc_merge_keeps_diagonal_blocks_only() -> None:
    """Experts with orthogonal columns and rows have block-diagonal cores, of two entries each: nothing is lost."""
    q, p = orthogonal(12), orthogonal(9, 3)
    deltas = [q[:, 3 * i : 3 * i + 2] @ torch.diag(random(2, seed=i).abs()) @ p[3 * i : 3 * i + 2] for i in range(3)]
    close(update("dc_merge", deltas, density=0.03), deltas[0] + deltas[1] + deltas[2], 1e-7)


def test_dc_merge_equals_a_float64_derivation() -> None:
    deltas = deltas_of()
    parts = [np.linalg.svd(delta.numpy(), full_matrices=False) for delta in deltas]

    def closest(a: Any) -> Any:
        x, _, y = np.linalg.svd(a, full_matrices=False)
        return x @ y

    left, right = closest(np.hstack([u[:, :3] for u, _, _ in parts])), closest(np.vstack([v[:3] for _, _, v in parts]))
    cores = []
    for u, s, v in parts:
        core = left.T @ (u[:, :3] * s[:3].mean()) @ v[:3] @ right.T
        cores.append(core * (np.abs(core) >= np.sort(np.abs(core).ravel())[-32]))  # int(0.4 · 81)
    sign = np.sign(sum(cores))
    agree = np.stack([core * (core * sign > 0) for core in cores])
    merged = agree.sum(axis=0) / np.maximum((agree != 0).sum(axis=0), 1)
    for i in range(9):
        for j in range(9):
            if i // 3 != j // 3:
                merged[i, j] = 0.0
    wanted = torch.from_numpy(left @ merged @ right)
    close(update("dc_merge", deltas, density=0.4, smoothing="avg"), wanted, 1e-6)


# --- WUDI and its closed forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wudi", "optmerge", "iwudi", "swudi", "aswudi"])
def test_wudi_returns_a_single_expert(name: str) -> None:
    (delta,) = deltas_of(1)
    close(update(name, [delta]), delta, 1e-7)


@pytest.mark.parametrize("name", ["wudi", "iwudi", "swudi", "aswudi"])
def test_wudi_of_row_orthogonal_experts_is_their_sum(name: str) -> None:
    p = orthogonal(9)
    deltas = [random(12, 3, seed=i) @ p[3 * i : 3 * i + 3] for i in range(3)]
    close(update(name, deltas), deltas[0] + deltas[1] + deltas[2], 3e-4 if name == "wudi" else 1e-7)


def test_wudi_descends_as_adam_on_the_papers_loss() -> None:
    deltas = deltas_of()
    m = sum(deltas[1:], deltas[0]).clone().requires_grad_()
    optimiser = torch.optim.Adam([m], lr=1e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = sum((((m - d) @ d.mT) ** 2).sum() / (d**2).sum() for d in deltas)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimiser.step()
    close(update("wudi", deltas, steps=60, rate=1e-3), m.detach(), 1e-7)


def test_optmerge_adapter_variant_descends_on_truncated_experts() -> None:
    deltas = deltas_of()
    m = (sum(deltas[1:], deltas[0]) / 3).clone().requires_grad_()
    optimiser = torch.optim.SGD([m], lr=1e-2, momentum=0.9)
    parts = [svd(delta).top(3) for delta in deltas]
    for _ in range(40):
        optimiser.zero_grad()
        pairs = zip(parts, deltas, strict=True)
        loss = sum((((m - p.matrix()) @ (p.s[:, None] * p.vh).mT) ** 2).sum() / (d**2).sum() for p, d in pairs)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimiser.step()
    options = {"center": False, "optimizer": "sgd", "start": "mean", "rate": 1e-2, "steps": 40}
    close(update("optmerge", deltas, **options), m.detach(), 1e-8)


def test_the_closed_form_solves_the_normal_equations_on_kept_directions() -> None:
    deltas = deltas_of()
    c, d = normal_equations(deltas, deltas, [float((x**2).sum()) for x in deltas])
    solved = update("aswudi", deltas, rank_rule="all")
    close(solved @ c, d, 1e-6)
    basis = torch.linalg.eigh(c).eigenvectors.flip(1)
    half = update("aswudi", deltas, rank_rule="ratio", ratio=0.5)  # ⌈9 · 0.5⌉ = 5
    close((half @ c - d) @ basis[:, :5] + 1.0, torch.ones(12, 5, dtype=torch.float64), 1e-8)
    close(half @ basis[:, 5:], sum(deltas[1:], deltas[0]) @ basis[:, 5:], 1e-8)


@pytest.mark.parametrize("start", ["sum", "mean", "zero"])
def test_a_filter_that_does_nothing_gives_the_start(start: str) -> None:
    deltas = deltas_of()
    factor = {"sum": 1.0, "mean": 1 / 3, "zero": 0.0}[start]
    merged = update("iwudi", deltas, time=0.0, start=start)
    assert torch.allclose(merged, factor * sum(deltas[1:], deltas[0]), atol=1e-12)


def test_filters_are_those_of_the_paper() -> None:
    values = torch.tensor([0.5, 0.1, 1e-3], dtype=torch.float64)
    filters = {
        "exponential": 1 - np.exp(-300 * values.numpy()),
        "landweber": 1 - (1 - 0.9 / 0.5 * values.numpy()) ** 150,
        "tikhonov": values.numpy() / (values.numpy() + 0.01),
        "none": np.ones(3),
    }
    for name, wanted in filters.items():
        method: Any = find("iwudi")(filter=name)  # type: ignore[call-arg]
        assert torch.allclose(method._filter(values), torch.from_numpy(wanted))


def test_rank_rules_read_off_the_spectrum() -> None:
    values = torch.tensor([4.0, 4.0, 4.0, 4.0, 1e-12, 1e-12], dtype=torch.float64)
    for rule in ("participation_sqrt", "participation", "entropy", "stable_rank"):
        assert effective_rank(values, rule, 0.95, 0.5) in (4, 5)  # type: ignore[arg-type]
    assert effective_rank(torch.tensor([16.0, 4.0]).double(), "stable_rank", 0.0, 1.0) == 2  # ⌈272/256⌉
    assert effective_rank(torch.tensor([16.0, 4.0]).double(), "participation_sqrt", 0.0, 1.0) == 2  # ⌈36/20⌉
    assert effective_rank(torch.tensor([6.0, 3.0, 1.0]).double(), "cumvar", 0.89, 1.0) == 2
    assert effective_rank(torch.tensor([6.0, 3.0, 1.0]).double(), "cumvar", 0.91, 1.0) == 3
    assert effective_rank(values, "ratio", 0.0, 1.0, ratio=0.65) == 4
    assert effective_rank(values, "all", 0.0, 1.0) == 6


def test_gavish_donoho_finds_a_planted_rank() -> None:
    noise = random(60, 60) / 60**0.5
    u, v = orthogonal(60), orthogonal(60, 3)
    values = torch.linalg.svdvals(noise + 10 * u[:, :5] @ v[:5]) ** 2
    assert effective_rank(values, "gavish_donoho", 0.0, 1.0) == 5
    assert effective_rank(values, "gavish_donoho_loose", 0.0, 1.0) > 5


def test_the_risk_rule_minimises_what_it_says() -> None:
    deltas = deltas_of(seed=34)  # where the two rules differ
    c, d = normal_equations(deltas, deltas, [float((x**2).sum()) for x in deltas])
    values, basis = torch.linalg.eigh(c)
    values, basis = values.flip(0), basis.flip(1)
    start = sum(deltas[1:], deltas[0])
    costs, misfits = [], []
    for kept in range(10):
        share = (torch.arange(9) < kept).double()
        theta = start + ((d @ basis / values - start @ basis) * share) @ basis.mT
        misfits.append(float(((theta @ c - d) ** 2).sum()))
        costs.append(misfits[-1] + float((theta**2).sum()))
    method: Any = find("aswudi")(rank_rule="risk")  # type: ignore[call-arg]
    assert max(1, int(np.argmin(costs))) == method._count(values, start @ basis, d @ basis)
    code: Any = find("aswudi")(rank_rule="risk_without_cross")  # type: ignore[call-arg]
    assert code._count(values, start @ basis, d @ basis) != method._count(values, start @ basis, d @ basis)
    elbow: Any = find("aswudi")(rank_rule="loss_elbow", level=0.9)  # type: ignore[call-arg]
    first = next(k for k, cost in enumerate(misfits) if cost <= 0.1 * misfits[0])
    assert elbow._count(values, start @ basis, d @ basis) == max(first, 1)
    # the authors' sum, λ²‖(θ₀Q)ₖ‖² + ‖(DQ)ₖ‖² over the directions that are not used
    terms = ((values * (start @ basis)) ** 2).sum(dim=0) + ((d @ basis) ** 2).sum(dim=0)
    left = [float(terms[kept:].sum()) for kept in range(10)]
    first = next(k for k, cost in enumerate(left) if cost <= 0.1 * left[0])
    elbow = find("aswudi")(rank_rule="loss_elbow_without_cross", level=0.9)  # type: ignore[call-arg]
    assert elbow._count(values, start @ basis, d @ basis) == max(first, 1)


@pytest.mark.parametrize("rule", sorted(set(get_args(RankRule)) - {"ratio"}))
@pytest.mark.parametrize("count", [1, 3])
def test_unfiltered_closed_forms_use_nothing_beyond_the_numerical_rank(rule: str, count: int) -> None:
    """Adapters of rank 1 with orthogonal rows and equal norms: C is a projector, and on its range the solution Σ τᵢ."""
    rows, columns = orthogonal(12)[:, :count], orthogonal(9, seed=8)[:, :count]
    deltas = [torch.outer(rows[:, i], columns[:, i]).float() for i in range(count)]
    merged = update("aswudi", deltas, rank_rule=rule, start="zero", level=0.95).double()
    used = merged @ columns  # what is there of each task; with equal eigenvalues fewer directions are any of them
    close(merged, used @ columns.mT, 1e-5)
    close(rows @ (rows.mT @ used), used, 1e-5)
    assert 0.999 < float(used.norm()) < count**0.5 + 1e-5


def test_the_closed_form_of_adapters_stays_finite_and_small() -> None:
    deltas = deltas_of(rank=1)
    for rule in ("all", "ratio", "participation_sqrt", "risk"):
        merged = update("aswudi", [delta.float() for delta in deltas], rank_rule=rule, ratio=0.3)
        assert float(merged.norm()) < 10 * float(sum(delta.norm() for delta in deltas))


@pytest.mark.parametrize("name", ["tsv_merge", "r_tsvm", "dc_merge", "iso_cts", "core_space", "iwudi", "wudi"])
def test_an_expert_of_weight_zero_is_an_expert_that_changed_nothing(name: str) -> None:
    deltas = deltas_of()
    absent = update(name, [deltas[0], torch.zeros_like(deltas[1]), deltas[2]], weights=[1.0, 1.0, 0.7])
    close(update(name, deltas, weights=[1.0, 0.0, 0.7]), absent)


def test_r_tsvm_is_not_turned_by_an_expert_without_outliers() -> None:
    flat = 0.1 * random(12, 9, seed=4).sign()
    deltas = [deltas_of()[0], flat]
    spiked = deltas[0].clone()
    spiked[3, 4] = 5.0
    alone = update("r_tsvm", [spiked, torch.zeros_like(flat)], deviations=3.0)
    merged = update("r_tsvm", [spiked, flat], deviations=3.0)
    rank = int(torch.linalg.matrix_rank(merged, rtol=1e-6))
    leading = svd(spiked).top(rank)
    close(merged, 2.0 * (leading.u * leading.s) @ leading.vh)  # ω = 2 and 0
    assert rank < int(torch.linalg.matrix_rank(alone, rtol=1e-6)), "the other expert takes its share of the rank"


# --- OPCM ----------------------------------------------------------------------------------------------------------


def test_opcm_equals_the_papers_sequence_with_its_rescaling_at_every_step() -> None:
    """λ, n̄ and the whole-model norm step by step, on two matrices and a bias, against one round at the end."""
    names = [NAME, "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.bias"]
    shapes = [(12, 9), (9, 12), (12,)]
    tasks = [
        {n: 0.1 * random(*s, seed=10 * i + j) for j, (n, s) in enumerate(zip(names, shapes, strict=True))}
        for i in range(4)
    ]
    base = {n: torch.zeros(s, dtype=torch.float64) for n, s in zip(names, shapes, strict=True)}

    def size(state: dict[str, Tensor]) -> float:
        return sum(float((value**2).sum()) for value in state.values()) ** 0.5

    merged, norms, previous = dict(tasks[0]), [size(tasks[0])], 1.0
    for task in tasks[1:]:
        norms.append(size(task))
        mean = sum(norms) / len(norms)
        for n in names:
            p, d = merged[n], task[n]
            if p.ndim == 2:
                u, s, vh = torch.linalg.svd(p, full_matrices=True)
                q = int(((s.cumsum(0) / s.sum()) > 0.5).nonzero()[0])
                core = u.mT @ d @ vh.mT
                core.fill_diagonal_(0.0)
                core[:q, :q] = 0.0
                d = u @ core @ vh
            merged[n] = previous * p + d
        total = size(merged)
        merged = {n: value * mean / total for n, value in merged.items()}
        previous = total / mean
    ours = plait.merge_state_dicts("opcm", tasks, base)
    for n in names:
        close(ours[n], merged[n], 1e-8)
    assert size(ours) == pytest.approx(sum(norms) / 4)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_opcm_adds_what_is_orthogonal_to_the_merged_directions(alpha: float) -> None:
    first, second = deltas_of(2)
    method: Any = find("opcm")(alpha=alpha)  # type: ignore[call-arg]
    group = Group(Subject(NAME, (12, 9), Role("mlp")), torch.zeros_like(first), (first, second), ("a", "b"), (1.0, 1.0))
    added = method._projected(factor(first), noise(group), second)
    assert abs(float((added * first).sum())) < 1e-10
    factors = svd(first)
    core = factors.u.mT @ added @ factors.vh.mT
    assert float(core.diagonal().abs().max()) < 1e-10
    if alpha == 1.0:
        assert float(core.abs().max()) < 1e-10
    # what the first does not reach is untouched
    outside = torch.eye(12) - factors.u @ factors.u.mT
    close(outside @ added, outside @ second, 1e-9)


def test_opcm_of_equal_experts_is_the_expert() -> None:
    (delta,) = deltas_of(1)
    close(update("opcm", [delta, delta], alpha=1.0), delta, 1e-8)
    # within a low rank the rest is not turned into an arbitrary basis
    low, other = deltas_of(1, rank=2)[0], deltas_of(1, seed=30)[0]
    factors = svd(low).top(2)
    inside = factors.u @ (factors.u.mT @ other @ factors.vh.mT) @ factors.vh
    merged = low + other - inside
    wanted = merged * (float(low.norm()) + float(other.norm())) / 2 / merged.norm()
    close(update("opcm", [low, other], alpha=1.0), wanted, 1e-8)


def test_opcm_survives_an_expert_that_is_the_base() -> None:
    (delta,) = deltas_of(1)
    zero = torch.zeros_like(delta)
    close(update("opcm", [zero, delta]), delta / 2, 1e-8)  # n̄ = ‖τ‖/2
    assert not update("opcm", [zero, zero]).any()


# --- DOGE ----------------------------------------------------------------------------------------------------------


def test_doge_without_steps_is_trimmed_arithmetic_of_one_norm() -> None:
    deltas = deltas_of()
    wanted = sum(0.07 * delta / delta.norm() for delta in deltas)
    assert isinstance(wanted, Tensor)
    close(update("doge", deltas, steps=0, density=1.0), wanted)
    trimmed = torch.zeros_like(deltas[0])
    for delta in deltas:
        limit = delta.abs().flatten().sort(descending=True).values[int(108 * 0.3)]
        trimmed += 0.07 * delta / delta.norm() * (delta.abs() >= limit)
    close(update("doge", deltas, steps=0), trimmed, 1e-6)


def test_doge_trims_over_all_matrices_together() -> None:
    """A matrix whose changes are all smaller than another's loses everything."""
    small, large = [1e-3 * d for d in deltas_of(2)], deltas_of(2, seed=9)
    other = "model.layers.1.mlp.up_proj.weight"
    base = {NAME: torch.zeros(12, 9), other: torch.zeros(12, 9), "model.norm.weight": torch.zeros(9)}
    experts = [
        {NAME: s.float(), other: b.float(), "model.norm.weight": torch.full((9,), 100.0)}
        for s, b in zip(small, large, strict=True)
    ]
    merged = plait.merge_state_dicts("doge", experts, base, steps=0)
    assert not merged[NAME].any() and merged[other].any()
    assert not merged["model.norm.weight"].any()
    # the bias stays and takes no part: int(216 · 0.3) + 1 entries of each expert are kept, all of the large matrix
    ours = plait.merge_state_dicts("doge", experts[:1], base, steps=0)
    assert int((ours[other] != 0).sum()) == 65


def test_doge_descends_on_its_loss_off_the_shared_subspace() -> None:
    deltas = deltas_of(2, 12, 9)
    scales = [0.07 / float(delta.norm()) for delta in deltas]
    u = np.linalg.svd(np.hstack([np.linalg.svd(d.numpy())[0][:, :4] for d in deltas]), full_matrices=False)[0]
    basis = torch.from_numpy(u[:, :1].copy())  # ⌊9/6⌋
    x = torch.zeros_like(deltas[0]).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=1e-3)
    for _ in range(30):
        optimiser.zero_grad()
        total = sum(s * d for s, d in zip(scales, deltas, strict=True))
        loss = sum((((d * (d - total - sum(scales) * x)).sum(dim=1)) ** 2).sum() for d in deltas)
        assert isinstance(loss, Tensor)
        loss.backward()
        assert x.grad is not None
        x.grad -= basis @ (basis.mT @ x.grad)
        optimiser.step()
    wanted = sum(s * (d + x.detach()) for s, d in zip(scales, deltas, strict=True))
    assert isinstance(wanted, Tensor)
    close(update("doge", deltas, steps=30, rate=1e-3, density=1.0), wanted, 1e-7)


# --- KnOTS and Core Space ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["knots", "core_space"])
@pytest.mark.parametrize(("inner", "factor"), [("sum", 1.0), ("mean", 1 / 3)])
@pytest.mark.parametrize("rank", [None, 2])
def test_linear_merges_do_not_depend_on_the_space(method: str, inner: str, factor: float, rank: int | None) -> None:
    deltas = deltas_of(rank=rank)
    close(update(method, deltas, inner=inner), factor * sum(deltas[1:], deltas[0]), 1e-7)


def test_core_space_tsv_equals_full_space_tsv_for_adapters() -> None:
    deltas = deltas_of(rank=2)
    close(update("core_space", deltas, inner="tsv"), update("tsv_merge", deltas, rank=2), 1e-7)


def _in_core_space(deltas: Deltas, inner: str, isotropize: bool) -> Tensor:
    """The paper's own way: bases of both sides, cores, their merge, back."""
    parts = [exact_factor(delta) for delta in deltas]
    parts = [part.top(part.rank) for part in parts]
    u = _span(torch.cat([p.u * p.s.sqrt() for p in parts], dim=1))
    v = _span(torch.cat([p.vh.mT * p.s.sqrt() for p in parts], dim=1))
    cores = [u.mT @ delta @ v for delta in deltas]
    if inner == "tsv":
        kept = max(1, min(cores[0].shape) // len(cores))
        merged = combine_subspaces([svd(core).top(min(kept, svd(core).rank)) for core in cores])
    else:
        merged = sum(cores[1:], cores[0])
    if isotropize:
        factors = exact_factor(merged)
        merged = factors.polar(factors.rank) * float(factors.s[: factors.rank].mean())
    return u @ merged @ v.mT


def _span(columns: Tensor) -> Tensor:
    factors = exact_factor(columns)
    return factors.top(factors.rank).u


@pytest.mark.parametrize("isotropize", [False, True])
@pytest.mark.parametrize("inner", ["tsv", "sum"])
@pytest.mark.parametrize("kind", ["full", "one full", "adapters", "shared rows", "shared columns"])
def test_core_space_without_its_basis_is_core_space(kind: str, inner: str, isotropize: bool) -> None:
    """Also where the experts share one side, so that the cores are smaller there than their ranks add up to."""
    deltas = deltas_of(rank=None if kind == "full" else 4, m=14, n=11)
    if kind == "one full":
        deltas[1] = 0.1 * random(14, 11, seed=3)
    if kind == "shared rows":
        deltas = [0.1 * random(14, 4, seed=i) @ random(4, 11, seed=50) for i in range(3)]
    if kind == "shared columns":
        deltas = [0.1 * random(14, 4, seed=50) @ random(4, 11, seed=i) for i in range(3)]
    for each in (deltas, [delta.mT.contiguous() for delta in deltas]):
        wanted = _in_core_space(each, inner, isotropize)
        close(update("core_space", each, inner=inner, isotropize=isotropize), wanted, 1e-7)


def test_core_space_isotropize_is_iso_c_for_adapters() -> None:
    deltas = deltas_of(rank=2)
    close(update("core_space", deltas, inner="sum", isotropize=True), update("iso_c", deltas), 1e-7)


def test_knots_ties_equals_a_float64_derivation() -> None:
    deltas = deltas_of(rank=2)
    u, s, _ = np.linalg.svd(np.hstack([d.numpy() for d in deltas]), full_matrices=False)
    for whitened in (False, True):
        cores = [u[:, :6].T @ d.numpy() / (s[:6, None] if whitened else 1.0) for d in deltas]
        kept = []
        for core in cores:
            limit = np.sort(np.abs(core).ravel())[::-1][int(core.size * 0.2)]
            kept.append(core * (np.abs(core) >= limit * (1 - 1e-9)))
        sign = np.sign(sum(kept))
        agree = [(core * sign > 0) * core for core in kept]
        count = sum((core != 0).astype(float) for core in agree)
        merged = sum(agree) / np.maximum(count, 1)
        wanted = torch.from_numpy(u[:, :6] @ (merged * (s[:6, None] if whitened else 1.0)))
        coordinates = "whitened" if whitened else "scaled"
        close(update("knots", deltas, scope="tensor", coordinates=coordinates), wanted, 1e-5)
        # one matrix is the whole model
        close(update("knots", deltas, coordinates=coordinates), wanted, 1e-5)


def test_knots_cutoff_drops_small_singular_values() -> None:
    deltas = deltas_of(rank=2)
    assert not update("knots", deltas, cutoff=1e3).any()


def test_parameters_without_meaning_are_refused() -> None:
    deltas = deltas_of()
    for method, options in {
        "tsv_merge": {"rank_fraction": 0.0},
        "svc": {"alpha": 0.0},
        "dc_merge": {"rho": 0.5},
    }.items():
        with pytest.raises(RecipeError):
            update(method if method != "svc" else ["task_arithmetic", "svc"], deltas, **options)


def test_weights_of_zero_leave_an_expert_out_of_the_norms() -> None:
    deltas = deltas_of(2)
    close(update("wudi", deltas, weights=[1.0, 0.0]), deltas[0], 1e-7)


@pytest.mark.parametrize("name", SPECTRAL)
def test_degenerate_matrices_pass(name: str) -> None:
    """A single column, a single row and a single number merge to something finite."""
    for shape in ((5, 1), (1, 5), (1, 1)):
        merged = update(name, [random(*shape, seed=i) for i in range(3)])
        assert merged.shape == shape and bool(torch.isfinite(merged).all())
