"""Raster order for heads that attend within frames, locations first for heads that attend along time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import PlanContext
from dit_sparse.orderings.base import TokenOrder
from dit_sparse.orderings.grid import axis_order
from dit_sparse.orderings.sampling import spread_tokens

HEAD_AXES = ("THW", "HWT")
"""Axis order of the spatial and of the temporal heads."""
SINK_SHARE = 0.5
"""The first frame is kept as long as it takes no more than this part of the budget."""

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class SpatialTemporal:
    """Call every head spatial or temporal, whichever band captures more of its attention, and give it the
    axis order that makes its band a diagonal (Sparse VideoGen, arXiv 2502.01776).

    A few query rows attend to all keys; per head, the share of their attention that falls into the spatial
    and into the temporal band at the given density decides. What a band misses is the error of its attention
    weights: the L1 distance of a row of attention from its renormalised part is twice the mass left out. The
    choice is made on the device, at every plan; no host reads it.

    Args:
        density: share of the keys that the compared bands keep, in (0, 1].
        rows: query rows to sample, >= 1, spread over the grid.
        first_frame: both bands keep the first frame, and temporal heads put it in front of their order;
            left out on grids of so few frames that it would take more than half of the keys kept.
    """

    density: float = 0.25
    rows: int = 64
    first_frame: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ValueError(f"density must be in (0, 1], got {self.density}")
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[B, H, Nv]``, with the two orders and every head's choice: 0 spatial, 1 temporal."""
        grid, device = context.layout.grid, q.device
        sink = keeps_first_frame(grid, self.density, self.first_frame)
        rows = spread_tokens(grid, self.rows, device)
        masks = _bands(grid, self.rows, self.density, sink, device)
        recall = kernels.sampled_recall(q.index_select(1, rows), k, masks, context.scale)
        choice = (recall[..., 1] > recall[..., 0]).long()
        spatial, temporal = (head_order(grid, axes, sink, device) for axes in HEAD_AXES)
        order = torch.where(choice[..., None] == 1, temporal, spatial)
        return TokenOrder(order, order, candidates=(spatial, temporal), choice=choice)


def keeps_first_frame(grid: Grid, density: float, wanted: bool) -> bool:
    """Whether the first frame is kept by all queries: where it is wanted and leaves room for the band."""
    return wanted and 1 / grid[0] <= SINK_SHARE * density


@lru_cache(maxsize=64)
def head_order(grid: Grid, axes: str, sink: bool, device: torch.device) -> Tensor:
    """int64 ``[Nv]``: an axis order, with the tokens of a kept first frame in front."""
    order = axis_order(grid, axes, device)
    if not sink:
        return order
    return order[torch.argsort((order >= grid[1] * grid[2]).to(torch.uint8), stable=True)]


def band_distance(q: Tensor, k: Tensor, grid: Grid, axes: str, sink: bool) -> Tensor:
    """How far keys lie from queries along an axis order; keys of a kept first frame are nearest to all.

    Args:
        q, k: int64 ``[n, 3]`` and ``[m, 3]``, (t, h, w) of tokens.
        grid: (T, H, W).
        axes: slowest axis first.
        sink: whether the first frame is kept.

    Returns:
        float32 ``[n, m]``, in tokens.
    """
    a, b, c = ("THW".index(axis) for axis in axes)
    q_place, k_place = ((x[:, a] * grid[b] + x[:, b]) * grid[c] + x[:, c] for x in (q, k))
    distance = (q_place[:, None] - k_place).abs().float()
    return distance.masked_fill(k[:, 0] == 0, 0.0) if sink else distance


@lru_cache(maxsize=64)
def _bands(grid: Grid, rows: int, density: float, sink: bool, device: torch.device) -> Tensor:
    """Bool ``[2, R, Nv]``: the keys of either band for every sampled row, in raster order."""
    flat = torch.arange(grid[0] * grid[1] * grid[2], device=device)
    tokens = torch.stack(torch.unravel_index(flat, grid), dim=-1)
    sampled = tokens[spread_tokens(grid, rows, device)]
    kept = max(1, round(density * len(tokens)))
    masks = []
    for axes in HEAD_AXES:
        distance = band_distance(sampled, tokens, grid, axes, sink)
        nearest = distance.topk(kept, dim=-1, largest=False, sorted=False).indices
        masks.append(torch.zeros_like(distance, dtype=torch.bool).scatter_(-1, nearest, True))
    return torch.stack(masks)
