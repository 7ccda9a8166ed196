"""Patterns that depend on the grid alone: a rule for tokens, turned into block pairs once per layout.

A pair of blocks is kept when some query and some key of it satisfy the rule. That is exact for any order of
the tokens and any grid; every pair of tokens is looked at once, and the result is kept for later calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from dit_sparse.kernels.pooling import CHUNK_BYTES
from dit_sparse.selectors.base import SelectionInput
from dit_sparse.selectors.spend import spend

Grid = tuple[int, int, int]
FEW = 8
"""Tokens of a block that stand for it where blocks of equal distance are ranked."""


class Pattern(Protocol):
    """A rule for tokens with a size. Results are kept under its hash."""

    def __hash__(self) -> int: ...

    def cost(self, q: Tensor, k: Tensor, grid: Grid) -> Tensor:
        """How much the pattern must grow for queries to reach keys: it contains a pair at cost <= 1.

        Args:
            q, k: int64 ``[n, 3]`` and ``[m, 3]``, (t, h, w) of tokens.
            grid: (T, H, W).

        Returns:
            float32 ``[n, m]``, finite; large where no size reaches.
        """
        ...


@dataclass(frozen=True)
class BlockDistance:
    """How near blocks are by a pattern.

    Args:
        cost: float32 ``[..., nQ, nK]``, least cost of a pair of tokens; infinite for blocks of text.
        rank: float32 ``[..., nQ, nK]``, place of the pair by that cost, ties by its mean over a few pairs of
            tokens, then by position. Leading dimensions are (1, 1), or (B, H) where heads chose orders.
    """

    cost: Tensor
    rank: Tensor


def select_pattern(given: SelectionInput, pattern: Pattern, density: float | None) -> Tensor:
    """Keep what the pattern contains, or its nearest pairs up to a density.

    Args:
        given: the selection problem.
        pattern: the rule.
        density: fraction of all pairs in (0, 1], forced pairs included: the pattern grows or shrinks until it
            holds as many, and the last step is taken in part. None takes the pattern as it is.

    Returns:
        Bool ``[B, H, nQ, nK]``.

    Raises:
        ValueError: where every head has an order of its own that does not depend on the grid alone.
    """
    near = block_distance(given, pattern)
    kept = near.cost <= 1.0 if density is None else spend(near.rank, given.forced, density, "head")
    return (kept | given.forced).expand(given.shape)


def block_distance(given: SelectionInput, *patterns: Pattern) -> BlockDistance:
    """Distance of all block pairs of the reordered sequence.

    Args:
        given: the selection problem.
        patterns: one, or one for every candidate order of the heads.

    Raises:
        ValueError: where every head has an order of its own that does not depend on the grid alone.
    """
    order, where = given.order, (given.context.layout.grid, given.video_start, tuple(given.forced.shape))
    shared = (*where, given.context.block_size, given.q.device)
    if order.choice is not None:
        rules = patterns if len(patterns) > 1 else patterns * len(order.candidates)
        found = [_distance(p, o, o, *shared) for p, o in zip(rules, order.candidates, strict=True)]
        return BlockDistance(*(torch.stack(maps)[order.choice] for maps in zip(*found, strict=True)))
    for given_order in (order.q, order.kv):
        if given_order is not None and given_order.dim() > 1:
            raise ValueError(
                f"{type(patterns[0]).__name__} needs an order of the tokens that all heads share, such as "
                f"Raster(), Tiles() or Cubes(); got one of shape {tuple(given_order.shape)}"
            )
    return BlockDistance(*(x[None, None] for x in _distance(patterns[0], order.q, order.kv, *shared)))


# Orders that depend on the grid alone are themselves cached, so they are found again by identity, which is
# how tensors hash.
@lru_cache(maxsize=64)
def _distance(
    pattern: Pattern,
    q_order: Tensor | None,
    kv_order: Tensor | None,
    grid: Grid,
    video_start: int,
    blocks: tuple[int, int],
    block_size: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Cost and rank ``[nQ, nK]``, see :class:`BlockDistance`."""
    (n_q, n_k), (q_size, k_size) = blocks, block_size
    q, q_video = _tokens(grid, q_order, video_start, n_q, q_size, device)
    k, k_video = _tokens(grid, kv_order, video_start, n_k, k_size, device)
    step = max(1, CHUNK_BYTES // (4 * n_k * k_size * q_size))
    least = [
        _by_block(pattern.cost(rows.flatten(0, 1), k.flatten(0, 1), grid), q_size, k_size).amin(-1).amin(1)
        for rows in q.split(step)
    ]
    text = ~(q_video[:, None] & k_video)
    cost = torch.cat(least).masked_fill(text, torch.inf)
    q_few, k_few = _few(q), _few(k)
    between = pattern.cost(q_few.flatten(0, 1), k_few.flatten(0, 1), grid)
    mean = _by_block(between, q_few.shape[1], k_few.shape[1]).mean(dim=(1, 3))
    by_mean = mean.flatten().argsort(stable=True)
    best_first = by_mean[cost.flatten()[by_mean].argsort(stable=True)]
    places = torch.arange(n_q * n_k, device=device, dtype=torch.float32)
    return cost, torch.empty_like(places).scatter_(0, best_first, places).view(n_q, n_k)


def _tokens(
    grid: Grid, order: Tensor | None, video_start: int, blocks: int, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(t, h, w) of the tokens of the reordered sequence by block, int64 ``[blocks, size, 3]``, and whether a
    block holds video, bool ``[blocks]``. In place of text and padding a block has its nearest video token
    once more, which changes no minimum."""
    count = grid[0] * grid[1] * grid[2]
    index = torch.arange(blocks * size, device=device).sub(video_start).clamp(0, count - 1)
    flat = index if order is None else order[index]
    start = torch.arange(blocks, device=device) * size - video_start
    tokens = torch.stack(torch.unravel_index(flat, grid), dim=-1).unflatten(0, (blocks, size))
    return tokens, (start + size > 0) & (start < count)


def _few(tokens: Tensor) -> Tensor:
    """A few tokens of every block, evenly: ``[blocks, min(FEW, size), 3]``."""
    size = tokens.shape[1]
    few = min(FEW, size)
    return tokens[:, (2 * torch.arange(few, device=tokens.device) + 1) * size // (2 * few)]


def _by_block(cost: Tensor, q_size: int, k_size: int) -> Tensor:
    """``[n, m]`` as ``[blocks, q_size, blocks, k_size]``."""
    return cost.unflatten(1, (-1, k_size)).unflatten(0, (-1, q_size))
