"""Orderings that depend on the grid alone: raster, axis permutation, space-time tiles. Same for every
prompt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dit_sparse.context import PlanContext
from dit_sparse.orderings.base import TokenOrder

AXIS_ORDERS = ("THW", "TWH", "HTW", "HWT", "WTH", "WHT")


@dataclass(frozen=True)
class Raster:
    """The model's own row-major (T, H, W) order: no permutation, no cost."""

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """Keep the order."""
        return TokenOrder()


@dataclass(frozen=True)
class AxisPermutation:
    """Flatten the grid in another axis order, one for all heads or one per head (PAROAttention, arXiv
    2506.16054).

    ``"HWT"`` makes the frames of one location neighbours, which turns attention along time into dense blocks.

    Args:
        axes: one of :data:`AXIS_ORDERS`, slowest axis first, or a tuple with one entry per head.

    Raises:
        ValueError: on an unknown axis order, or when the number of entries is not the number of heads.
    """

    axes: str | tuple[str, ...] = "THW"

    def __post_init__(self) -> None:
        for axes in (self.axes,) if isinstance(self.axes, str) else self.axes:
            if axes not in AXIS_ORDERS:
                raise ValueError(f"unknown axis order {axes!r}: use one of {', '.join(AXIS_ORDERS)}")

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[Nv]`` for a common order, ``[H, Nv]`` for one per head."""
        grid, device = context.layout.grid, q.device
        if isinstance(self.axes, str):
            order = axis_order(grid, self.axes, device)
        else:
            if len(self.axes) != q.shape[2]:
                raise ValueError(f"{len(self.axes)} axis orders for {q.shape[2]} heads: give one per head")
            order = torch.stack([axis_order(grid, axes, device) for axes in self.axes])
        return TokenOrder(order, order)


@dataclass(frozen=True)
class Tiles:
    """Cut the grid into (t, h, w) tiles and put the tokens of a tile side by side.

    Draft-Attention's 8x16 patches are tiles of (1, 8, 16) (arXiv 2505.14708). The grid need not be divisible:
    edge tiles are smaller, and fixed-size blocks then straddle neighbouring tiles. Tiles follow one another
    in boustrophedon order, so a straddling block still covers adjacent tiles.

    Args:
        tile: tokens per tile along T, H and W, each >= 1; None takes patches of one frame that fill a query
            block: 8x16 for 128-token blocks, 8x8 for 64, 8x4 for 32.
    """

    tile: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.tile is not None and (len(self.tile) != 3 or min(self.tile) < 1):
            raise ValueError(f"tile must be three sizes >= 1 along T, H and W, got {self.tile}")

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[Nv]``, the same for all heads."""
        tile = self.tile or (1, 8, max(1, context.block_size[0] // 8))
        order = tile_order(context.layout.grid, tile, q.device)
        return TokenOrder(order, order)


@lru_cache(maxsize=64)
def axis_order(grid: tuple[int, int, int], axes: str, device: torch.device) -> Tensor:
    """int64 ``[T*H*W]``: raster indices listed with ``axes[0]`` slowest and ``axes[2]`` fastest."""
    raster = torch.arange(grid[0] * grid[1] * grid[2], device=device).view(grid)
    return raster.permute(["THW".index(axis) for axis in axes]).reshape(-1)


def all_axis_orders(grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, ...]:
    """:func:`axis_order` of every one of :data:`AXIS_ORDERS`."""
    return tuple(axis_order(grid, axes, device) for axes in AXIS_ORDERS)


def axis_orders(grid: tuple[int, int, int], choice: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The order of every head that chose one of :data:`AXIS_ORDERS`, and the six to choose from.

    Args:
        grid: (T, H, W).
        choice: int64 ``[...]``, index into :data:`AXIS_ORDERS`.

    Returns:
        int64 ``[..., T*H*W]`` on choice's device, and six times int64 ``[T*H*W]``.
    """
    candidates = all_axis_orders(grid, choice.device)
    return torch.stack(candidates)[choice], candidates


@lru_cache(maxsize=64)
def tile_order(grid: tuple[int, int, int], tile: tuple[int, int, int], device: torch.device) -> Tensor:
    """int64 ``[T*H*W]``: raster indices tile by tile, each tile in raster order."""
    return torch.argsort(_tile_rank(grid, tile, device), stable=True)


@lru_cache(maxsize=64)
def tile_runs(grid: tuple[int, int, int], tile: tuple[int, int, int]) -> tuple[int, ...]:
    """Tokens of every tile, in the order in which :func:`tile_order` puts the tiles."""
    return tuple(torch.bincount(_tile_rank(grid, tile, torch.device("cpu"))).tolist())


def _tile_rank(grid: tuple[int, int, int], tile: tuple[int, int, int], device: torch.device) -> Tensor:
    """int64 ``[T*H*W]``: place of every token's tile among the tiles."""
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    (tile_t, tile_h, tile_w) = (axis // size for axis, size in zip(axes, tile))
    count_h, count_w = (-(-n // size) for n, size in zip(grid[1:], tile[1:]))
    # Boustrophedon: every second row of tiles runs backwards, every second layer bottom-up.
    tile_h = torch.where(tile_t % 2 == 1, count_h - 1 - tile_h, tile_h)
    tile_w = torch.where((tile_t * count_h + tile_h) % 2 == 1, count_w - 1 - tile_w, tile_w)
    rank = (tile_t * count_h + tile_h) * count_w + tile_w
    return rank.reshape(-1)
