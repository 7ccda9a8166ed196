"""A name for what a head does, from its block mass in raster order.

Five masks that each keep about :data:`SHARE` of the pairs are laid over the mass; the simplest one that
captures nearly as much as the best names the head:

- diagonal: the pairs nearest to the main diagonal;
- vertical: the heaviest columns, the same for all rows;
- local: the nearest pairs on the (T, H, W) grid, in proportion to its sides;
- multi-diagonal: the heaviest diagonals, wherever they lie.

A head is global where no mask captures :data:`CAPTURED` of its mass, and skippable, before all else, where
its output is less than :data:`FAINT` of the square of the mean head's. The names are those of Sparse-vDiT
(arXiv 2506.03065) and PAROAttention (arXiv 2506.16054); rules and thresholds are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.profiler.recording import PATTERN_CLASSES

SHARE = 0.2
CAPTURED = 0.6
NEARLY = 0.9
"""Part of the best mask's mass at which a simpler mask is preferred."""
FAINT = 0.05
DIAGONAL, MULTI_DIAGONAL, VERTICAL, LOCAL, GLOBAL, SKIPPABLE = range(len(PATTERN_CLASSES))
SIMPLEST_FIRST = (DIAGONAL, VERTICAL, LOCAL, MULTI_DIAGONAL)


def pattern_classes(mass: Tensor, near: Tensor, strength: Tensor) -> Tensor:
    """Name the heads of a layer.

    Args:
        mass: ``[H, n, n]`` >= 0, between blocks of video in raster order; rows need not sum to 1.
        near: bool ``[n, n]``, the pairs that are nearest on the grid, about :data:`SHARE` of all.
        strength: ``[H]``, output squared in units of the layer's mean head.

    Returns:
        uint8 ``[H]``, index in :data:`~dit_sparse.profiler.recording.PATTERN_CLASSES`.
    """
    mass = mass.float() / mass.sum(dim=-1, keepdim=True).clamp(min=1e-30)
    blocks = mass.shape[-1]
    captured = {
        DIAGONAL: (mass * _band(blocks, mass.device)).sum(dim=(-1, -2)),
        VERTICAL: _columns(mass),
        LOCAL: (mass * near).sum(dim=(-1, -2)),
        MULTI_DIAGONAL: _diagonals(mass),
    }
    shares = torch.stack([captured[kind] for kind in SIMPLEST_FIRST]) / blocks
    best = shares.amax(dim=0)
    simplest = (shares >= NEARLY * best).to(torch.uint8).argmax(dim=0)
    named = torch.tensor(SIMPLEST_FIRST, device=mass.device)[simplest]
    named = torch.where(best >= CAPTURED, named, GLOBAL)
    return torch.where(strength < FAINT, SKIPPABLE, named).to(torch.uint8)


def _offsets(blocks: int, device: torch.device) -> Tensor:
    """Column less row, int64 ``[n, n]``."""
    place = torch.arange(blocks, device=device)
    return place - place[:, None]


def _band(blocks: int, device: torch.device) -> Tensor:
    """Bool ``[n, n]``: the widest band with at most :data:`SHARE` of the pairs, the diagonal at least."""
    apart = _offsets(blocks, device).abs()
    pairs = torch.bincount(apart.flatten(), minlength=blocks).cumsum(0)
    width = (pairs <= SHARE * blocks * blocks).sum().clamp(min=1)
    return apart < width


def _columns(mass: Tensor) -> Tensor:
    """Mass of the heaviest columns, ``[H]``."""
    kept = max(1, round(SHARE * mass.shape[-1]))
    return mass.sum(dim=-2).topk(kept, dim=-1).values.sum(dim=-1)


def _diagonals(mass: Tensor) -> Tensor:
    """Mass of the heaviest diagonals by mass per pair, up to :data:`SHARE` of the pairs, ``[H]``."""
    blocks = mass.shape[-1]
    index = (_offsets(blocks, mass.device) + blocks - 1).flatten()
    pairs = torch.bincount(index, minlength=2 * blocks - 1)
    total = mass.new_zeros(mass.shape[0], len(pairs))
    total.index_add_(1, index, mass.flatten(1))
    order = (total / pairs).argsort(dim=-1, descending=True, stable=True)
    used = pairs[order].cumsum(dim=-1)
    budget = max(SHARE * blocks * blocks, float(blocks))
    return (total.gather(-1, order) * (used <= budget)).sum(dim=-1)
