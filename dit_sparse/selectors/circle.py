"""A circular window within the frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.geometry import Grid, select_pattern

STRICTLY = 1 + 1e-6
"""Puts tokens at the radius itself outside, as the paper does; below the resolution of any radius used."""


@dataclass(frozen=True)
class Circle:
    """Keep the pairs with a query and a key less than a radius apart: dx^2 + dy^2 < r^2 (CLEAR, arXiv
    2412.16112).

    The paper is about images. In a video the circle is the same in every frame, a cylinder along time, unless
    ``time_scale`` puts time into the distance: dx^2 + dy^2 + (time_scale * dt)^2 < r^2.

    Args:
        radius: in tokens, > 0.
        density: instead, keep the nearest pairs up to this fraction, as the circle that holds as many.
        time_scale: tokens that a step of one frame counts, >= 0; 0 ignores time.
    """

    radius: float = 16.0
    density: float | None = None
    time_scale: float = 0.0

    def __post_init__(self) -> None:
        check_density(self.density)
        if not self.radius > 0:
            raise ValueError(f"radius must be greater than 0 tokens, got {self.radius}")
        if not self.time_scale >= 0:
            raise ValueError(f"time_scale must not be negative, got {self.time_scale}")

    def cost(self, q: Tensor, k: Tensor, grid: Grid) -> Tensor:
        """Squared distance in units of the squared radius, ``[n, m]``."""
        scales = (self.time_scale, 1.0, 1.0)
        squares = []
        for axis, scale in enumerate(scales):
            gap = (q[:, axis, None] - torch.arange(grid[axis], device=k.device)) * scale / self.radius
            squares.append((gap.float().square() * STRICTLY).index_select(1, k[:, axis]))
        return squares[0] + squares[1] + squares[2]

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        return select_pattern(given, replace(self, density=None), self.density)
