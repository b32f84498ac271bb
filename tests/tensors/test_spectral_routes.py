"""Every fast route to singular vectors against LAPACK's SVD in float64, on matrices that are hard for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.tensors.descent import adam, descend_rows, times_rows
from plait.tensors.factors import RESOLVED, Factors, exact_factor, factor, polar
from plait.tensors.products import add_gram, add_product, gram_of_rows, mirror, times
from plait.tensors.spectral import SVD, svd
from plait.tensors.streams import Stream
from plait.tensors.subspaces import combine_subspaces, common_columns, leading_columns, stack

SHAPES = [(40, 40), (40, 90), (90, 40), (7, 300), (300, 7), (1, 5), (5, 1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(values: Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    """A float32 matrix whose singular values are these, up to rounding."""
    u = torch.linalg.qr(random(m, values.numel(), seed=seed))[0]
    v = torch.linalg.qr(random(n, values.numel(), seed=seed + 1))[0]
    return ((u * values) @ v.mT).float()


def spectra(r: int) -> dict[str, Tensor]:
    ones = torch.ones(r, dtype=torch.float64)
    steps = torch.linspace(0, 1, r, dtype=torch.float64)
    return {
        "clustered": 1.0 + 1e-7 * steps,
        "two clusters": torch.where(steps < 0.5, 1.0 + 1e-6 * steps, 1e-3 + 1e-9 * steps),
        "condition 1e3": 10.0 ** (-3 * steps),
        "condition 1e6": 10.0 ** (-6 * steps),
        "condition 1e12": 10.0 ** (-12 * steps),
        "rank deficient": ones * (steps < 0.4),
        "one direction": ones * (torch.arange(r) == 0),
        "tiny": 1e-30 * (2.0 - steps),
        "large": 1e15 * (2.0 - steps),
        "zero": 0.0 * ones,
    }


CASES = [(name, shape) for shape in SHAPES for name in spectra(4)]


def hard(name: str, shape: tuple[int, int]) -> Tensor:
    return with_values(spectra(min(shape))[name], *shape)


def size(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix.double()))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_values_rank_and_vectors_are_as_exact_as_float32(name: str, shape: tuple[int, int]) -> None:
    matrix = hard(name, shape)
    fast, exact = factor(matrix), exact_factor(matrix)
    largest = float(exact.s[0])
    assert float((fast.s - exact.s).abs().max()) <= 3e-8 * largest
    assert fast.rank == exact.rank
    k = fast.rank
    kept = exact.s[:k]
    # relative, too: nothing that is kept lies near the root of float64's rounding
    assert torch.allclose(fast.s[:k], kept, rtol=1e-7, atol=0)
    found = fast.top(k)
    eye = torch.eye(k)
    assert float((found.u.double().mT @ found.u.double() - eye).abs().sum()) <= 1e-6 * max(k, 1)
    assert float((found.vh.double() @ found.vh.double().mT - eye).abs().sum()) <= 1e-6 * max(k, 1)
    assert size(found.matrix().double() - exact.top(k).matrix().double()) <= 1e-6 * size(matrix)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_polar_factor_and_truncation(name: str, shape: tuple[int, int]) -> None:
    """The polar factor of what is kept errs by float32's rounding over its smallest singular value."""
    matrix = hard(name, shape)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    k = exact_factor(matrix).rank
    wanted = u[:, :k] @ vh[:k]
    assert size(polar(matrix).double() - wanted) <= 1e-6 * max(k, 1) ** 0.5
    for count in {1, k // 2, k} - {0}:
        if count <= k and (count == s.numel() or float(s[count - 1] - s[count]) > 1e-3 * float(s[0])):
            cut = (u[:, :count] * s[:count]) @ vh[:count]
            assert size(factor(matrix).truncated(count).double() - cut) <= 2e-6 * size(matrix)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_what_the_gram_matrix_cannot_resolve_goes_through_lapack(shape: tuple[int, int]) -> None:
    r = min(shape)
    easy = with_values(torch.logspace(0, -3, r, dtype=torch.float64), *shape)
    assert factor(easy).long is None
    if r > 4:
        assert factor(hard("condition 1e6", shape)).long is not None
    assert factor(random(*shape)).long is not None, "float64 has no wider type"
    # of a side of 1024 on, what lies below the bound is rounding by the rule of the numerical rank
    assert 1024 * torch.finfo(torch.float32).eps >= RESOLVED


def test_a_low_rank_delta_of_rounded_weights_is_found_from_its_gram_spectrum() -> None:
    """An adapter of rank 8 in a 256 × 1200 weight: the rank, and an update as exact as the SVD's."""
    low = (random(256, 8) @ random(8, 1200, seed=1)).float() * 1e-3
    factors, exact = factor(low), exact_factor(low)
    assert factors.long is None and factors.rank == exact.rank == 8
    assert size(factors.top(8).matrix() - low) <= 1e-6 * size(low)
    assert factors.along(8).shape == (8, 1200)


def subspaces(overlap: float, m: int, n: int, k: int = 6) -> list[SVD]:
    """Three experts whose leading directions share a part."""
    common = random(m, n, seed=9)
    deltas = [(overlap * common + (1 - overlap) * random(m, n, seed=i)).float() for i in range(3)]
    return [svd(delta.double()).top(k) for delta in deltas]


@pytest.mark.parametrize("shape", [(30, 70), (70, 30), (20, 20)])
@pytest.mark.parametrize("overlap", [0.0, 0.9, 0.99, 1.0])
def test_joined_subspaces_equal_those_of_two_svds(shape: tuple[int, int], overlap: float) -> None:
    """Within float32's rounding over the smallest singular value of the joined vectors, equal experts included."""
    exact = subspaces(overlap, *shape)
    parts = [SVD(*(x.float() for x in part)) for part in exact]
    u, vh = torch.cat([p.u for p in parts], dim=1), torch.cat([p.vh for p in parts])
    s = torch.cat([p.s for p in parts]).double()
    wanted = (_exact_polar(u) * s) @ _exact_polar(vh)
    smallest = min(float(f.s[f.rank - 1]) for f in (exact_factor(u), exact_factor(vh)))
    for given in (parts, stack(iter(parts), 18)):
        assert size(combine_subspaces(given).double() - wanted) <= 4e-7 / smallest * size(wanted)


def _exact_polar(matrix: Tensor) -> Tensor:
    factors = exact_factor(matrix)
    return factors.top(factors.rank).u.double() @ factors.top(factors.rank).vh.double()


def test_stacking_takes_parts_of_any_size_and_gives_them_back() -> None:
    parts = [svd(random(9, 6, seed=i)).top(k) for i, k in enumerate((2, 0, 3))]
    joined = stack(iter(parts), 12)
    assert joined.sizes == (2, 0, 3)
    for ours, given in zip(joined.parts(), parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, given, strict=True))
    empty = stack(iter([svd(random(9, 6)).top(0)]), 4)
    assert not combine_subspaces(empty).any() and combine_subspaces(empty).shape == (9, 6)


@pytest.mark.parametrize("shape", [(20, 45), (45, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cores_and_their_expansion(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix, other = random(*shape).to(dtype), random(*shape, seed=1).to(dtype)
    factors, exact = factor(matrix), torch.linalg.svd(matrix.double(), full_matrices=False)
    core = factors.core(other, 7)
    wanted = exact.U[:, :7].mT @ other.double() @ exact.Vh[:7].mT
    ours = core.mT if factors.tall else core
    # the signs of a pair of vectors are arbitrary
    assert torch.allclose(ours.abs(), wanted.abs(), atol=1e-5 if dtype == torch.float32 else 1e-10)
    inside = exact.U[:, :7] @ wanted @ exact.Vh[:7]
    assert size(factors.expand(core).double() - inside) <= 1e-6 * size(inside)
    left = factors.left(5)
    assert left.dtype == torch.float64
    assert torch.allclose((left.mT @ exact.U[:, :5]).abs(), torch.eye(5).double(), atol=1e-7)


def test_leading_columns_in_float64() -> None:
    """Of what several orthonormal bases share; directions they repeat exactly are not filled with rounding."""
    bases = [torch.linalg.qr(random(50, 6, seed=i))[0] for i in range(3)]
    for joined in (torch.cat(bases, dim=1), torch.cat([*bases, *bases], dim=1).mT[:30].mT):
        wanted = torch.linalg.svd(joined).U[:, :4]
        ours = leading_columns(joined, 4, 2.0**-52)
        assert torch.allclose(ours @ ours.mT, wanted @ wanted.mT, atol=1e-10)
    assert leading_columns(torch.cat([bases[0]] * 3, dim=1), 9, 2.0**-52).shape == (50, 6)


def test_common_columns_of_a_stream_are_looked_at_one_by_one() -> None:
    matrices = [random(20, 15, seed=i).float() for i in range(3)]
    u, s = common_columns(Stream(3, lambda i: matrices[i].clone()))
    wanted = torch.linalg.svd(torch.cat(matrices, dim=1).double())
    assert torch.allclose(s.double(), wanted.S[: s.numel()], rtol=1e-6)
    assert torch.allclose(u.double() @ u.double().mT, wanted.U @ wanted.U.mT, atol=1e-6)


@pytest.mark.parametrize("rows", [3, 300, 700])
def test_panels_and_blocks_cannot_be_seen(rows: int) -> None:
    a, b = random(rows, 9000).float(), random(40, 9000, seed=1).float()
    gram = mirror(gram_of_rows(a))
    wanted = a.double() @ a.double().mT
    assert torch.allclose(gram, wanted, atol=1e-9) and torch.equal(gram, gram.mT)
    total = torch.zeros(rows, 40, dtype=torch.float64)
    add_product(total, a, b, 2.0)
    assert torch.allclose(total, 2.0 * a.double() @ b.double().mT, atol=1e-9)
    single = torch.zeros(rows, rows)
    add_gram(single, a, 0.5)
    assert torch.allclose(mirror(single).double(), 0.5 * wanted, atol=1e-2)
    left = random(rows, rows, seed=2)
    product = (left @ a.double()).float()
    assert torch.equal(times(left, a), times(left, a.mT.contiguous().mT))
    assert torch.allclose(times(left, a), product, rtol=1e-6, atol=1e-5)
    times(left, a, a)
    assert torch.allclose(a, product, rtol=1e-6, atol=1e-5)


def test_factors_do_not_depend_on_how_the_matrix_lies_in_memory() -> None:
    matrix = random(60, 33).float()
    for a, b in ((matrix, matrix.mT.contiguous().mT), (matrix.mT, matrix.mT.contiguous())):
        one, other = factor(a), factor(b)
        assert torch.equal(one.s, other.s) and torch.equal(one.short, other.short)


def test_a_stream_makes_tensors_anew_and_slices_lazily() -> None:
    made: list[int] = []

    def make(i: int) -> Tensor:
        made.append(i)
        return torch.full((2,), float(i))

    stream = Stream(4, make)
    assert len(stream) == 4 and not made
    stream[1].add_(5.0)
    assert stream[1].tolist() == [1.0, 1.0] and stream[-1].tolist() == [3.0, 3.0]
    part = stream[1:3]
    assert isinstance(part, Stream) and len(part) == 2 and made == [1, 1, 3]
    assert [float(x[0]) for x in part.map(lambda x: x.mul_(2.0))] == [2.0, 4.0]
    assert [float(x[0]) for x in stream] == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(IndexError):
        stream[4]


def test_rows_descend_as_the_whole_matrix_does() -> None:
    start, target, c = random(1100, 6), random(1100, 6, seed=1), random(6, 6, seed=2)
    c = c @ c.mT
    wanted = adam(start.clone(), lambda m: (m @ c - target) * 2.0, 30, 1e-2)
    ours = descend_rows(adam, start.clone(), lambda rows: rows @ c, target, 30, 1e-2)
    assert torch.allclose(ours, wanted, atol=1e-9)
    # where the gradient is 0 it is 0 to the last bit, and nothing moves
    rest = descend_rows(adam, start.clone(), lambda rows: rows @ c, times_rows(lambda rows: rows @ c, start), 30, 1e-2)
    assert torch.equal(rest, start)


def test_factors_know_their_matrix() -> None:
    matrix = random(5, 8).float()
    found = factor(matrix)
    assert isinstance(found, Factors) and found.matrix is matrix and not found.tall
    overwritten = found.polar(5, overwrite=True)
    assert overwritten.data_ptr() == matrix.data_ptr()
