"""Coordinates of matrices in the singular basis of all of them side by side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.tensors.streams import Stream
from plait.tensors.tied import tie

SHAPES = [(20, 15), (60, 12), (37, 12), (15, 40), (7, 1), (1, 7)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stream(matrices: list[Tensor]) -> Stream:
    return Stream(len(matrices), lambda i: matrices[i].clone())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coordinates_are_those_of_the_svd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrices = [random(*shape, seed=i).to(dtype) for i in range(3)]
    tied = tie(stream(matrices))
    u, s, _ = torch.linalg.svd(torch.cat(matrices, dim=1).double(), full_matrices=False)
    exact = 1e-5 if dtype == torch.float32 else 1e-7
    assert torch.allclose(tied.values.double(), s[: tied.values.numel()], rtol=exact)
    for i, matrix in enumerate(matrices):
        core = tied.coordinates(i)
        assert core.dtype == dtype and core.is_contiguous()
        # the signs of singular vectors are arbitrary
        assert torch.allclose(core.double().abs(), (u.mT @ matrix.double()).abs()[: core.shape[0]], atol=10 * exact)
        assert torch.allclose(tied.expand(core), matrix, atol=10 * exact)


@pytest.mark.parametrize("shape", [(60, 12), (15, 40)])
def test_a_cutoff_and_low_ranks_leave_few_coordinates(shape: tuple[int, int]) -> None:
    m, n = shape
    low = [(random(m, 2, seed=i) @ random(2, n, seed=i + 9)).float() for i in range(3)]
    tied = tie(stream(low))
    assert tied.coordinates(1).shape == (6, n)
    assert torch.allclose(tied.expand(tied.coordinates(1)), low[1], atol=1e-4)
    none = tie(stream(low), cutoff=1e9)
    assert none.values.numel() == 0 and not none.expand(none.coordinates(0)).any()
    zero = tie(stream([torch.zeros(m, n)] * 2))
    assert zero.values.numel() == 0 and not zero.expand(zero.coordinates(0)).any()


def test_a_spectrum_that_a_gram_matrix_cannot_resolve_goes_another_way() -> None:
    """Values over four decades in tall matrices: the small ones are still right to float32's own rounding."""
    u, v = (torch.linalg.qr(random(k, 8, seed=k))[0] for k in (200, 8))
    wide = ((u * torch.logspace(0, -4.4, 8, dtype=torch.float64)) @ v.mT).float()
    tied = tie(stream([wide[:, :4].contiguous(), wide[:, 4:].contiguous()]))
    wanted = torch.linalg.svdvals(wide.double())
    assert torch.allclose(tied.values.double(), wanted[: tied.values.numel()], rtol=1e-5)
    assert torch.allclose(tied.expand(tied.coordinates(0)), wide[:, :4], atol=1e-6)
