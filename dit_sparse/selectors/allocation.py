"""One budget for the heads of a layer, spent where it lowers the error most."""

from __future__ import annotations

import torch
from torch import Tensor


def allocate(error: Tensor, cost: Tensor, sizes: Tensor, density: float) -> Tensor:
    """Sizes for all heads of a sample that spend a common budget at one common exchange rate of error for
    cost.

    The multiple-choice knapsack problem in its linear relaxation: every head climbs the lower convex hull of
    its (cost, error) points, and the steps of all heads are taken in order of their slope until the budget is
    spent. The last step is taken in part, so at most one head ends between two of its levels, and the budget
    is met exactly.

    Args:
        error: float ``[B, H, L]``, error of every head at every level, the last level's the smallest.
        cost: float ``[L]``, rising with the level.
        sizes: int64 ``[L]``, what a level takes out of the budget, not falling; levels of equal size are one.
        density: budget of all heads of a sample together, as a fraction of ``H * sizes[-1]``.

    Returns:
        int64 ``[B, H]``, between ``sizes[0]`` and ``sizes[-1]``. Nothing is read by the host.
    """
    slopes, amounts = _steps(error, cost, sizes)
    best_first = slopes.flatten(1).argsort(dim=-1, descending=True, stable=True)
    ordered = amounts.flatten(1).gather(-1, best_first)
    before = ordered.cumsum(dim=-1) - ordered
    heads = error.shape[1]
    left = (density * heads * sizes[-1].double()).round().long() - heads * sizes[0] - before
    taken = torch.minimum(left.clamp(min=0), ordered)
    bought = torch.zeros_like(ordered).scatter_(-1, best_first, taken)
    return sizes[0] + bought.view(amounts.shape).sum(dim=-1)


def _steps(error: Tensor, cost: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (error lost per cost, falling) and amounts of every head's steps along its hull, two ``[B, H,
    L - 1]``; a head that has fewer steps has empty ones at the end."""
    levels = error.shape[-1]
    here = torch.zeros_like(error[..., :1], dtype=torch.long)
    slopes, amounts = [], []
    for _ in range(levels - 1):
        slope = (error.gather(-1, here) - error) / (cost - cost[here])
        # Where the cost does not rise either, nothing is gained; it must not poison the maximum.
        slope = slope.nan_to_num(nan=0.0).masked_fill(sizes <= sizes[here], -torch.inf)
        # Of equal slopes the farthest: points on the hull's edge are one step.
        there = levels - 1 - slope.flip(-1).argmax(dim=-1, keepdim=True)
        gain = slope.gather(-1, there)
        there = torch.where(gain.isneginf(), here, there)
        slopes.append(gain)
        amounts.append(sizes[there] - sizes[here])
        here = there
    return torch.cat(slopes, dim=-1), torch.cat(amounts, dim=-1)
