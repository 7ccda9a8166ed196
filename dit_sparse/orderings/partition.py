"""Partitions of the grid that change from layer to layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.context import PlanContext
from dit_sparse.layout import ceil_div
from dit_sparse.orderings.base import TokenOrder
from dit_sparse.orderings.grid import tile_order, tile_runs

Parts = tuple[int, int, int]


@dataclass(frozen=True)
class CyclingPartition:
    """Cut the grid into cells, along other axes in every layer (VMoBA, arXiv 2506.23858).

    Layer l takes partition ``l mod len(parts)``; the tokens of a cell sit side by side, so key blocks are
    runs of a cell. Time, space and space-time take turns by default, in the number of cells that the paper
    has at 21 x 45 x 80 tokens: runs of 3 frames; columns of 9 x 10 over all frames; cubes of 7 x 15 x 20.

    Args:
        parts: for every partition, cells along T, H and W, each >= 1; an axis with fewer tokens has a cell
            per token.
    """

    parts: tuple[Parts, ...] = ((7, 1, 1), (1, 5, 8), (3, 3, 4))

    def __post_init__(self) -> None:
        if not self.parts or any(len(cells) != 3 or min(cells) < 1 for cells in self.parts):
            raise ValueError(
                f"parts must hold at least one (T, H, W) triple of counts >= 1, got {self.parts}"
            )

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[Nv]``, the same for all heads, with the cells as runs."""
        grid = context.layout.grid
        tile = cell_size(grid, self.parts[context.site.layer % len(self.parts)])
        order = tile_order(grid, tile, q.device)
        return TokenOrder(order, order, runs=tile_runs(grid, tile))


def cell_size(grid: tuple[int, int, int], parts: Parts) -> tuple[int, int, int]:
    """Tokens of a cell along T, H and W when the axes are cut into (about) this many parts.

    >>> cell_size((21, 45, 80), (3, 3, 4))
    (7, 15, 20)
    """
    t, h, w = (ceil_div(length, count) for length, count in zip(grid, parts, strict=True))
    return (t, h, w)


def run_means(x: Tensor, runs: tuple[int, ...]) -> Tensor:
    """Mean token of every run of consecutive tokens.

    Args:
        x: ``[B, N, H, D]``; the runs follow one another from its first token.
        runs: tokens of every run, in all at most N.

    Returns:
        float32 ``[B, H, len(runs), D]``.
    """
    means, start = [], 0
    for length in runs:
        means.append(x[:, start : start + length].mean(dim=1, dtype=torch.float32))
        start += length
    return torch.stack(means, dim=2)
