"""A shape of block for every head, learnt from observed attention and carried in the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dit_sparse.context import Observation, PlanContext
from dit_sparse.orderings.base import TokenOrder
from dit_sparse.orderings.grid import all_axis_orders, tile_order
from dit_sparse.orderings.learnt import ALL, Heads, LearntOrder

CHOICE = "shapes"
"""Key in the layer's state: uint8 ``[B, H]``, index in :func:`shape_orders` for every head."""
DEPTHS = (1, 2, 4, 8)
"""Frames of the tiles tried."""


@dataclass(frozen=True)
class LearntShapes(LearntOrder):
    """Choose for every head which tokens make a block: runs along one of six axis orders, or tiles.

    A run of the raster is a row of one frame, of the order HWT one place over time; tiles of the grid are
    near along all axes. At an observed step every order gets the mask of the blocks whose means would serve
    worst; the order whose output comes nearest to the dense one wins. PAROAttention (arXiv 2506.16054) has
    the axis orders, STA (arXiv 2502.04507) and DraftAttention (arXiv 2505.14708) one tile for all heads; the
    choice among both, and to judge it by the output after compensation, are ours: a block that is skipped
    enters through its means, so the best blocks are those whose tokens are alike, not only those that are
    heavy (docs/findings.md).

    Args:
        density: fraction of blocks at which the orders are compared, in (0, 1]; at 1 nothing is learnt.
        again: fraction of the steps after which the choice is made once more; None for never.
        query_blocks: blocks of queries, spread evenly, on which the orders are compared, >= 1; shorter
            sequences use all of theirs. Every order costs these a pass over the logits and a sparse
            attention.
        compensated: compare with what :class:`~dit_sparse.corrections.PooledCompensation` makes good; else
            by the mask of the heaviest blocks alone.
        tiles: try tiles beside the axis orders.
    """

    key: ClassVar[str] = CHOICE

    query_blocks: int = 8
    compensated: bool = True
    tiles: bool = True

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[B, H, Nv]``, with the orders tried and every head's choice; raster order where nothing was
        learnt yet."""
        chosen = context.state.values.get(CHOICE)
        if chosen is None:
            return TokenOrder()
        return TokenOrder.among(self.orders(context, q.device), chosen.long())

    def orders(self, context: PlanContext, device: torch.device) -> tuple[Tensor, ...]:
        """See :func:`shape_orders`."""
        return shape_orders(context, device, tiles=self.tiles)

    def best(self, seen: Observation, heads: Heads = ALL) -> Tensor:
        """See :meth:`LearntOrder.best`."""
        return self._least(seen, heads, compensated=self.compensated)


def shape_orders(context: PlanContext, device: torch.device, *, tiles: bool = True) -> tuple[Tensor, ...]:
    """The orders to choose from, int64 ``[Nv]`` each: the six axis orders, then those of
    :func:`block_tiles`."""
    grid = context.layout.grid
    runs = all_axis_orders(grid, device)
    found = block_tiles(context.block_size[0], grid) if tiles else ()
    return runs + tuple(tile_order(grid, tile, device) for tile in found)


def block_tiles(tokens: int, grid: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    """Tiles of about ``tokens`` tokens that fit the grid, near-square in space, wide and high.

    >>> block_tiles(128, (21, 45, 80))
    ((1, 8, 16), (1, 16, 8), (2, 8, 8), (4, 4, 8), (4, 8, 4), (8, 4, 4))
    >>> block_tiles(32, (1, 16, 16))
    ((1, 4, 8), (1, 8, 4))
    """
    tiles = []
    for depth in DEPTHS:
        patch = tokens // depth
        if depth > grid[0] or patch < 1:
            continue
        low = 1 << ((patch.bit_length() - 1) // 2)
        for height, width in dict.fromkeys([(low, patch // low), (patch // low, low)]):
            if height <= grid[1] and width <= grid[2]:
                tiles.append((depth, height, width))
    return tuple(tiles)
