"""A band within the frame, the same in every frame: Re-ttention's static mask."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.geometry import Grid, select_pattern


@dataclass(frozen=True)
class FrameBand:
    """Keep the keys whose place in their frame is near the query's in its own, in raster order, whatever the
    frames (Re-ttention, arXiv 2505.22918).

    In raster order a band thinner than a block costs a block per frame; in the axis order HWT, where all
    frames of a place are neighbours, it is one run of blocks.

    Args:
        share: width of the band as a fraction of the frame's tokens, in (0, 1].
        density: instead, the nearest pairs of blocks up to this fraction, forced pairs included.
    """

    share: float = 0.031
    density: float | None = None

    def __post_init__(self) -> None:
        check_density(self.density)
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share must be in (0, 1], got {self.share}: it is the band's part of a frame")

    def cost(self, q: Tensor, k: Tensor, grid: Grid) -> Tensor:
        """Distance within the frame in half-widths, ``[n, m]``."""
        _, height, width = grid
        q_place, k_place = (x[:, 1] * width + x[:, 2] for x in (q, k))
        return (q_place[:, None] - k_place).abs() / (max(1, round(self.share * height * width)) / 2)

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        return select_pattern(given, replace(self, density=None), self.density)
