"""A band within the frame that narrows with distance in time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.geometry import Grid, select_pattern


@dataclass(frozen=True)
class RadialBand:
    """Keep pairs whose places in their frames are near, the nearer the farther their frames are apart (Radial
    attention, arXiv 2506.19852).

    With s tokens per frame, frames dt apart and places (in raster order) ds apart, a pair is kept where
    ds + 1 <= s / 2^floor(log2 dt): the own frame and its neighbours whole, and half the width each time the
    distance in time doubles. Where that is below one token, only equal places are kept, in every
    ceil(2^floor(log2 dt) / s)-th frame.

    Args:
        density: grow or shrink all bands by one factor until they hold this fraction of the pairs.
        decay: further factor on the bands of frames at least two apart, > 0.
        sink: all queries keep the first frame; where ``density`` shrinks the bands it narrows with the own
            frame's.
    """

    density: float | None = None
    decay: float = 1.0
    sink: bool = True

    def __post_init__(self) -> None:
        check_density(self.density)
        if not self.decay > 0:
            raise ValueError(f"decay must be greater than 0, got {self.decay}")

    def cost(self, q: Tensor, k: Tensor, grid: Grid) -> Tensor:
        """Factor on the bands' widths at which they hold a pair, ``[n, m]``."""
        frame = grid[1] * grid[2]
        q_place, k_place = ((x[:, 1] * grid[2] + x[:, 2]).float() for x in (q, k))
        # What depends on the pair of frames alone has few values, [n, T], and is spread over the keys last.
        apart = (q[:, 0, None] - torch.arange(grid[0], device=k.device)).abs()
        powers = 2 ** torch.arange(grid[0].bit_length(), device=k.device)
        narrow = powers[torch.bucketize(apart.clamp(min=1), powers, right=True) - 1]
        reach = torch.where(apart >= 2, self.decay * frame, float(frame)) / narrow
        if self.sink:
            reach[:, 0] = frame
        places = (q_place[:, None] - k_place).abs_()
        cost = (places + 1).div_(reach.index_select(1, k[:, 0]))
        if grid[0] <= frame:  # no band is below one token
            return cost
        in_turn = ((narrow > frame) & (apart % -(-narrow // frame) == 0)).index_select(1, k[:, 0])
        return torch.where(in_turn & (places == 0), cost.clamp(max=1.0), cost)

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        return select_pattern(given, replace(self, density=None), self.density)
