"""Block masks drawn from recorded mass, and whether two step groups can do with one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_sparse.kernels.pooling import block_lengths
from dit_sparse.patterns import MASK
from dit_sparse.profiler.assignment import Assignment
from dit_sparse.profiler.problem import Problem
from dit_sparse.selectors.budgets import pair_ranks
from dit_sparse.selectors.modes import band_ranks
from dit_sparse.selectors.spend import spend

RULES = ("heaviest", "rows", "band", "stripes")
"""How a mask of a given number of pairs is drawn. heaviest: the heaviest pairs of the head. rows: the
heaviest of every row, equally many. band: those nearest to the diagonal in the head's order. stripes: key
blocks that are heaviest over all queries. All keep the forced pairs first."""
HEAVIEST, ROWS, BAND, STRIPES = range(len(RULES))


def draw(problem: Problem, mass: Tensor, rule: int, pairs: int) -> Tensor:
    """A head's mask of as many pairs, or of the forced ones where these are more.

    Args:
        problem: blocks and forced pairs.
        mass: float32 ``[nQ, nK]``.
        rule: index into :data:`RULES`.
        pairs: to keep.

    Returns:
        Bool ``[nQ, nK]``.
    """
    forced = problem.forced
    if rule in (HEAVIEST, ROWS):
        scope = "head" if rule == HEAVIEST else "row"
        return spend(-mass[None, None], forced, pairs / problem.total, scope)[0, 0]  # type: ignore[arg-type]
    return (pair_places(problem, mass, rule) < pairs) | forced


def pair_places(problem: Problem, mass: Tensor, rule: int) -> Tensor:
    """Places of a head's pairs, int64 ``[nQ, nK]``, in which bands and stripes widen."""
    forced, text_rows = problem.forced, problem.text_rows
    if rule == BAND:
        return band_ranks(forced, text_rows, problem.recording.grid.block_size)
    column = mass.sum(dim=-2, keepdim=True).expand(mass.shape)
    return pair_ranks((-column).masked_fill(forced, -torch.inf))


def recall(problem: Problem, mass: Tensor, mask: Tensor) -> Tensor:
    """Softmax mass that masks keep, mean over queries: ``[...]`` from ``[..., nQ, nK]``."""
    tokens = problem.layout.num_tokens
    share = block_lengths(tokens, problem.recording.grid.block_size[0], mass.device) / tokens
    return ((mass * mask).sum(dim=-1) * share).sum(dim=-1)


def layer_masks(problem: Problem, given: Assignment, layer: int, groups: Sequence[int]) -> Tensor:
    """Masks of the heads of kind mask of one layer that step groups share, bool ``[heads, nQ, nK]``."""
    first = groups[0]
    heads = np.flatnonzero(given.kind[first, layer] == MASK)
    mass = problem.mean_mass(layer, list(groups), given.axes[first, layer])
    drawn = [
        draw(problem, mass[h], int(given.rule[first, layer, h]), int(given.pairs[first, layer, h]))
        for h in heads.tolist()
    ]
    return torch.stack(drawn) if drawn else torch.zeros(0, *problem.blocks, dtype=torch.bool)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of two sets of masks, by head: ``[heads]`` from ``[heads, nQ, nK]``."""
    return (a & b).sum(dim=(1, 2)) / (a | b).sum(dim=(1, 2)).clamp(min=1)


def could_share(given: Assignment, layer: int, g: int, other: int) -> bool:
    """Whether a layer's masks in two step groups are of the same heads, drawn alike in the same orders."""
    masked = given.kind[:, layer] == MASK
    same: NDArray = masked[g] == masked[other]
    for values in (given.axes, given.rule):
        same = same & ((values[g, layer] == values[other, layer]) | ~masked[g])
    return bool(same.all() and masked[g].any())
