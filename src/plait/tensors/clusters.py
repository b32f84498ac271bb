"""k-means of a few hundred points."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["k_means"]


def k_means(
    points: Float[Tensor, "n d"], count: int, draws: Float[Tensor, "starts k"], steps: int = 100
) -> Int[Tensor, " n"]:
    """Assign points to `count` clusters: the best of several k-means++ starts, each improved until nothing moves.

    Args:
        points: one per row.
        count: number of clusters, at most the number of points.
        draws: uniform numbers in [0, 1): one row per start, at least `count` of them in it.
        steps: at most so many improvements.
    """
    if count >= points.shape[0]:
        return torch.arange(points.shape[0])
    wide = points.double()
    # all that is asked of points are distances, which their Gram matrix knows
    gram = wide @ wide.mT
    lengths = gram.diagonal()
    best: tuple[float, Tensor] | None = None
    for row in draws:
        owners = _improve(gram, lengths, _start(gram, lengths, count, row), steps)
        cost = float(_distances(gram, lengths, owners, count).gather(1, owners[:, None]).sum())
        if best is None or cost < best[0] - 1e-9 * abs(best[0]):
            best = (cost, owners)
    assert best is not None
    return best[1]


def _start(gram: Tensor, lengths: Tensor, count: int, row: Tensor) -> Tensor:
    """k-means++: each further centre is a point drawn by its squared distance from those there are."""
    total = gram.shape[0]
    chosen = [min(int(float(row[0]) * total), total - 1)]
    near = torch.full_like(lengths, torch.inf)
    for number in range(1, count):
        last = chosen[-1]
        near = torch.minimum(near, (lengths + lengths[last] - 2 * gram[last]).clamp_min(0.0))
        near[chosen] = 0.0
        if not float(near.sum()) > 0:  # the rest are copies of chosen ones
            chosen.append(next(i for i in range(total) if i not in chosen))
            continue
        reached = near.cumsum(0) / near.sum()
        chosen.append(min(int((reached <= float(row[number])).sum()), total - 1))
    index = torch.tensor(chosen)
    owners = (lengths[:, None] + lengths[index] - 2 * gram[:, index]).argmin(dim=1)
    owners[index] = torch.arange(count)
    return owners


def _distances(gram: Tensor, lengths: Tensor, owners: Tensor, count: int) -> Tensor:
    """Squared distance of every point to the mean of every cluster."""
    members = torch.nn.functional.one_hot(owners, count).to(gram.dtype)
    shares = members / members.sum(dim=0).clamp_min(1.0)
    cross = gram @ shares
    return lengths[:, None] + (shares * cross).sum(dim=0) - 2 * cross


def _improve(gram: Tensor, lengths: Tensor, owners: Tensor, steps: int) -> Tensor:
    count = int(owners.max()) + 1
    for _ in range(steps):
        moved = _distances(gram, lengths, owners, count).argmin(dim=1)
        if len(moved.unique()) < count or bool((moved == owners).all()):
            break
        owners = moved
    return owners
