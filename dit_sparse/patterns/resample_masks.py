"""Block masks carried over to another grid.

A head keeps its forced pairs first (text, diagonal), then the pairs of highest score
(:mod:`~dit_sparse.patterns.resample_scores`) until its density is met. Where the scores alone do not decide,
as they do not where the density changes, pairs amid kept ones come first, then pairs near the diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dit_sparse.layout import pack_bits, unpack_bits
from dit_sparse.orderings import AXIS_ORDERS
from dit_sparse.patterns.resample_scores import GridChange

_AMID, _NEAR, _FORCED = 0.5, 1e-3, 10.0
"""Weights beside a score in [0, 1]: mean score of the pair and its eight neighbours, relative distance from
the diagonal, and above all else what is forced."""


def carry_masks(
    bits: Tensor, axes: list[int], density: list[float], change: GridChange
) -> tuple[Tensor, list[float]]:
    """Masks of one layer for another grid.

    Args:
        bits: uint8 ``[n, nQ, ceil(nK / 8)]`` of the old grid.
        axes: index into AXIS_ORDERS of every head.
        density: fraction of pairs to keep on the new grid, forced ones included, of every head.
        change: from which sequence to which.

    Returns:
        The same for the new grid, and the fractions kept: within one pair of ``density``, or above it where
        more is forced.
    """
    forced = change.new.forced()
    places = [(torch.arange(n) + 0.5) / n for n in forced.shape]
    near = -_NEAR * (places[0][:, None] - places[1]).abs()
    carried, kept = [], []
    for head, (order, share) in enumerate(zip(axes, density, strict=True)):
        mask = unpack_bits(bits[head], change.old.counts[1]).float()
        score = change.score(mask, AXIS_ORDERS[order])
        amid = avg_pool2d(score[None], 3, stride=1, padding=1, count_include_pad=False)[0]
        rank = (score + _AMID * amid + near).masked_fill_(forced, _FORCED).flatten()
        count = max(int(forced.sum()), round(share * forced.numel()))
        best = torch.zeros_like(rank, dtype=torch.bool).scatter_(
            0, rank.topk(count, sorted=False).indices, True
        )
        carried.append(pack_bits(best.view_as(forced)))
        kept.append(count / forced.numel())
    return torch.stack(carried), kept
