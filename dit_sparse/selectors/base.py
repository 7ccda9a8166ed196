"""Selector axis: which (query block, key block) pairs are computed exactly.

Selectors work on the reordered sequences and return a bool mask. Skipping is pre-softmax: a skipped block
contributes nothing to the denominator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dit_sparse.context import PlanContext
from dit_sparse.kernels import VariableBlocks
from dit_sparse.orderings import forced_pairs as forced_pairs  # part of this contract
from dit_sparse.orderings.base import TokenOrder


@dataclass(frozen=True)
class SelectionInput:
    """All a selector may look at.

    Args:
        q, k, v: ``[B, N, H, D]`` in the reordered sequence, text included.
        order: the permutations of the video tokens and the clusters they came from.
        forced: bool ``[nQ, nK]``, pairs that are kept whatever the selector says (text rows and columns, the
            diagonal); they count towards the budget.
        video_start: position of the first video token in the reordered sequence.
        context: layout, site, scale, block size, carried state.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    order: TokenOrder
    forced: Tensor
    video_start: int
    context: PlanContext

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, nQ, nK) of the mask to return."""
        return (self.q.shape[0], self.q.shape[2], *self.forced.shape)


class Selector(Protocol):
    """Chooses the pairs that are computed."""

    def select(self, given: SelectionInput) -> Tensor | VariableBlocks:
        """Bool mask ``[B, H, nQ, nK]`` on q's device, without host synchronisation; or pairs of variable
        blocks, which run as a reference."""
        ...


def check_density(density: float | None) -> None:
    """Raise ValueError unless ``density`` is None or in (0, 1]."""
    if density is not None and not 0.0 < density <= 1.0:
        raise ValueError(f"density must be in (0, 1], got {density}: it is the fraction of blocks computed")


def keep_smallest(cost: Tensor, density: float, dims: int) -> Tensor:
    """Keep the pairs of smallest cost until ``density`` of them is kept: exact counts, ties broken by
    position.

    Args:
        cost: float ``[B, H, nQ, nK]``; ``-inf`` marks pairs to keep first.
        density: fraction in (0, 1].
        dims: how many trailing dimensions share one budget: 1 = per row, 2 = per head, 3 = over all heads.

    Returns:
        Bool mask like ``cost``.
    """
    flat = cost.flatten(start_dim=cost.dim() - dims)
    budget = max(1, round(density * flat.shape[-1]))
    kept = torch.topk(flat, budget, dim=-1, largest=False, sorted=False).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, kept, True).view_as(cost)
