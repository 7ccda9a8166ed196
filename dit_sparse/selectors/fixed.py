"""Selectors that do not look at the content: a space-time window, and a given mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.layout import BlockMap, PackedBlockMap
from dit_sparse.selectors.base import SelectionInput, check_density, keep_smallest


@dataclass(frozen=True)
class Window:
    """Keep the pairs whose blocks come near one another on the (T, H, W) grid.

    Two blocks are apart by the largest gap between their bounding boxes, measured per axis in units of the
    window's half-width (neighbourhood attention at block resolution; GNA, arXiv 2504.16922). Works on any
    ordering, because the boxes are those of the tokens that a block really holds.

    Args:
        window: full width along T, H and W in tokens, each >= 1. A pair is kept when some query of the block
            may see some key of the other.
        density: instead of the exact window, keep the nearest pairs of every row up to this fraction;
            ``window`` then only sets the proportions of the axes.
    """

    window: tuple[int, int, int] = (5, 15, 15)
    density: float | None = None

    def __post_init__(self) -> None:
        check_density(self.density)
        if len(self.window) != 3 or min(self.window) < 1:
            raise ValueError(f"window must be three widths >= 1 along T, H and W, got {self.window}")

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        q_low, q_high = _bounding_boxes(
            given, given.order.q, given.context.block_size[0], given.forced.shape[0]
        )
        k_low, k_high = _bounding_boxes(
            given, given.order.kv, given.context.block_size[1], given.forced.shape[1]
        )
        gap = torch.maximum(
            q_low[..., :, None, :] - k_high[..., None, :, :], k_low[..., None, :, :] - q_high[..., :, None, :]
        )
        half = gap.new_tensor(self.window) / 2
        distance = (gap.clamp(min=0) / half).amax(dim=-1)
        if self.density is None:
            kept = distance <= 1.0
        else:
            # Equal gaps are common on a grid: the distance of the centres breaks the tie, below one grid
            # step.
            centre = (q_low + q_high)[..., :, None, :] - (k_low + k_high)[..., None, :, :]
            distance = distance + 1e-3 * (centre.abs() / half).sum(dim=-1) / (
                1 + sum(given.context.layout.grid)
            )
            kept = keep_smallest(distance.masked_fill(given.forced, float("-inf")), self.density, dims=1)
        return (kept | given.forced).expand(given.shape)


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
