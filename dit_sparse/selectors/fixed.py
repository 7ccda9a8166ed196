"""Selectors that do not look at the content: a space-time window, and a given mask."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit_sparse.layout import BlockMap, PackedBlockMap
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.geometry import Grid, select_pattern
from dit_sparse.selectors.neighbourhood import Border, least_window
from dit_sparse.selectors.spend import spend


@dataclass(frozen=True)
class Window:
    """Keep the pairs whose blocks come near one another on the (T, H, W) grid.

    Neighbourhood attention at block resolution (GNA, arXiv 2504.16922): a pair is kept when some query of the
    block sees some key of the other, see :func:`~dit_sparse.selectors.neighbourhood.least_window`. Exact for
    orders that depend on the grid alone. Where every head has another order, as with clusters, the bounding
    boxes of the blocks stand for their tokens: a pair is then kept where the boxes come near enough.

    Args:
        window: full width along T, H and W: tokens (>= 1), or a share of the axis (a float in (0, 1]).
        density: instead of the exact window, keep the nearest pairs up to this fraction; ``window`` then only
            sets the proportions of the axes.
        stride: neighbours that share a window, along T, H and W; a stride beyond the window counts as the
            window.
        dilation: distance of the tokens that see one another, along T, H and W.
        border: at the edge of the grid a window is "cut" off, or "shift"-ed to stay inside, so that every
            query sees as much.
    """

    window: tuple[int | float, int | float, int | float] = (5, 15, 15)
    density: float | None = None
    stride: tuple[int, int, int] = (1, 1, 1)
    dilation: tuple[int, int, int] = (1, 1, 1)
    border: Border = "cut"

    def __post_init__(self) -> None:
        check_density(self.density)
        if len(self.window) != 3 or any(
            not 0 < width <= 1 if isinstance(width, float) else width < 1 for width in self.window
        ):
            raise ValueError(
                "window must be three widths along T, H and W, in tokens (whole numbers >= 1) or shares of "
                f"the axis (floats in (0, 1]), got {self.window}"
            )
        for name in ("stride", "dilation"):
            value = getattr(self, name)
            if len(value) != 3 or any(not isinstance(n, int) or n < 1 for n in value):
                raise ValueError(f"{name} must be three whole numbers >= 1 along T, H and W, got {value}")
        if self.border not in ("cut", "shift"):
            raise ValueError(f"border must be 'cut' or 'shift', got {self.border!r}")

    def cost(self, q: Tensor, k: Tensor, grid: Grid) -> Tensor:
        """Largest, over the axes, of the window needed in units of the window given, ``[n, m]``."""
        costs = []
        for axis, (length, width) in enumerate(zip(grid, self._widths(grid), strict=True)):
            keys = torch.arange(length, device=k.device)
            stride, dilation = min(self.stride[axis], width), self.dilation[axis]
            needed = least_window(q[:, axis], keys, length, stride, dilation, self.border)
            costs.append((needed / width).index_select(1, k[:, axis]))
        return torch.maximum(torch.maximum(costs[0], costs[1]), costs[2])

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``.

        Raises:
            ValueError: for a stride, dilation or shift where every head has another order.
        """
        orders = (given.order.q, given.order.kv)
        if given.order.choice is not None or all(order is None or order.dim() == 1 for order in orders):
            return select_pattern(given, replace(self, density=None), self.density)
        if (self.stride, self.dilation, self.border) != ((1, 1, 1), (1, 1, 1), "cut"):
            raise ValueError(
                f"stride {self.stride}, dilation {self.dilation} and border {self.border!r} need an order of "
                "the tokens that all heads share, such as Raster(), Tiles() or Cubes(); with others use "
                "(1, 1, 1), (1, 1, 1) and 'cut'"
            )
        distance = self._box_distance(given)
        if self.density is None:
            return (distance <= 1.0).expand(given.shape) | given.forced
        return spend(distance, given.forced, self.density, "head").expand(given.shape)

    def _widths(self, grid: Grid) -> tuple[int, ...]:
        """The window in tokens."""
        pairs = zip(self.window, grid, strict=True)
        return tuple(max(1, round(w * n)) if isinstance(w, float) else w for w, n in pairs)

    def _box_distance(self, given: SelectionInput) -> Tensor:
        """Largest gap of the bounding boxes in half-widths, ties by the centres, ``[..., nQ, nK]``."""
        q_low, q_high = _bounding_boxes(
            given, given.order.q, given.context.block_size[0], given.forced.shape[0]
        )
        k_low, k_high = _bounding_boxes(
            given, given.order.kv, given.context.block_size[1], given.forced.shape[1]
        )
        gap = torch.maximum(
            q_low[..., :, None, :] - k_high[..., None, :, :], k_low[..., None, :, :] - q_high[..., :, None, :]
        )
        grid = given.context.layout.grid
        widths = self._widths(grid)
        distance = _in_half_widths(gap.clamp(min=0), widths).amax(dim=-1)
        if self.density is None:
            return distance
        # Equal gaps are common on a grid: the distance of the centres breaks the tie, below one grid step.
        centre = (q_low + q_high)[..., :, None, :] - (k_low + k_high)[..., None, :, :]
        return distance + 1e-3 * _in_half_widths(centre.abs(), widths).sum(dim=-1) / (1 + sum(grid))


@dataclass(frozen=True)
class Static:
    """A mask made beforehand, for example by a profile.

    Args:
        block_map: kept pairs ``[B or 1, H, nQ, nK]`` in the reordered sequence.
    """

    block_map: PackedBlockMap | BlockMap

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``.

        Raises:
            ValueError: if the mask was made for other token counts, heads or blocks.
        """
        block_map = self.block_map.unpack() if isinstance(self.block_map, PackedBlockMap) else self.block_map
        mask = block_map.to_mask()
        b, h, n_q, n_k = given.shape
        size = given.context.block_size
        if mask.shape[0] not in (1, b) or mask.shape[1:] != (h, n_q, n_k) or block_map.block_size != size:
            raise ValueError(
                f"the static mask is {tuple(mask.shape)} with blocks {block_map.block_size}; "
                f"this call needs {given.shape} with blocks {size}"
            )
        return mask.to(given.q.device).expand(given.shape) | given.forced


def _in_half_widths(gap: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Gaps along the axes ``[..., 3]`` in units of half the window."""
    return torch.stack([gap[..., axis] / (width / 2) for axis, width in enumerate(widths)], dim=-1)


def _bounding_boxes(
    given: SelectionInput, order: Tensor | None, size: int, blocks: int
) -> tuple[Tensor, Tensor]:
    """Lowest and highest (t, h, w) of the video tokens in each block, float32 ``[..., blocks, 3]`` each.

    Blocks without video tokens get an empty box far away; they hold text and are forced anyway.
    """
    grid, device = given.context.layout.grid, given.q.device
    axes = torch.meshgrid(*(torch.arange(n, device=device, dtype=torch.float32) for n in grid), indexing="ij")
    position = torch.stack(axes, dim=-1).view(-1, 3)
    if order is not None:
        position = position[order]
    front = given.video_start
    back = blocks * size - front - position.shape[-2]
    far = 1e6
    low = torch.nn.functional.pad(position, (0, 0, front, back), value=far)
    high = torch.nn.functional.pad(position, (0, 0, front, back), value=-far)
    return low.unflatten(-2, (blocks, size)).amin(dim=-2), high.unflatten(-2, (blocks, size)).amax(dim=-2)
