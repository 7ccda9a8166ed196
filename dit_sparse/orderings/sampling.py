"""A few query rows that stand for all: spread over the grid, the same for every prompt."""

from __future__ import annotations

from functools import lru_cache
from itertools import count

import torch
from torch import Tensor

_PLASTIC = 1.2207440846057596
"""Root of x^4 = x + 1: the steps 1/x, 1/x^2, 1/x^3 fill a cube evenly for every number of points."""


@lru_cache(maxsize=64)
def spread_tokens(grid: tuple[int, int, int], rows: int, device: torch.device) -> Tensor:
    """Raster indices of ``rows`` tokens spread evenly over the grid, ascending, int64 ``[min(rows, T*H*W)]``.

    Equal strides along the sequence would meet the same columns of every frame; a low-discrepancy sequence
    meets every frame, row and column about equally often.

    Args:
        grid: (T, H, W).
        rows: how many, >= 1.
        device: of the result.
    """
    if rows < 1:
        raise ValueError(f"the number of sampled rows must be at least 1, got {rows}")
    frames, height, width = grid
    if rows >= frames * height * width:
        return torch.arange(frames * height * width, device=device)
    found: set[int] = set()
    for i in count():
        t, h, w = (int((0.5 + i / _PLASTIC**a) % 1.0 * n) for a, n in enumerate(grid, start=1))
        found.add((t * height + h) * width + w)
        if len(found) == rows:
            return torch.tensor(sorted(found), device=device)
    raise AssertionError("unreachable: the sequence comes near every token")
