"""Space-time cubes: tokens that are near along all three axes share a block."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from torch import Tensor

from dit_sparse.context import PlanContext
from dit_sparse.orderings.base import TokenOrder
from dit_sparse.orderings.grid import tile_order


@dataclass(frozen=True)
class Cubes:
    """Tiles of two frames (one, for an image) that fill a query block: 2x8x8 tokens for blocks of 128.

    The most compact blocks, so that a neighbourhood touches the fewest (GNA, arXiv 2504.16922). Grids that
    the cube does not divide have smaller edge tiles, see :class:`~dit_sparse.orderings.grid.Tiles`.
    """

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[Nv]``, the same for all heads."""
        grid = context.layout.grid
        order = tile_order(grid, cube_tile(context.block_size[0], grid[0]), q.device)
        return TokenOrder(order, order)


def cube_tile(tokens: int, frames: int) -> tuple[int, int, int]:
    """Tile of about ``tokens`` tokens: two frames where there are two, and a near-square patch of them.

    >>> [cube_tile(size, 5) for size in (16, 32, 64, 128)]
    [(1, 4, 4), (2, 4, 4), (2, 4, 8), (2, 8, 8)]
    >>> cube_tile(128, 1)
    (1, 8, 16)
    """
    depth = 2 if frames > 1 and tokens >= 32 else 1
    patch = max(1, tokens // depth)
    # The largest power of two whose square fits: block sizes are powers of two, and so are their sides.
    height = 1 << (isqrt(patch).bit_length() - 1)
    return (depth, height, max(1, patch // height))
