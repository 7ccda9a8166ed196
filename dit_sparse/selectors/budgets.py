"""Budgets that differ from head to head: ranks of pairs, and as many of the first as a head may keep."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_ranks(cost: Tensor) -> Tensor:
    """Place of every pair among those of its head by ascending cost, ties by position.

    Args:
        cost: ``[..., nQ, nK]``.

    Returns:
        int64 ``[..., nQ, nK]``, 0 .. nQ * nK - 1.
    """
    return _ranks(cost.flatten(-2)).view(cost.shape)


def row_ranks(cost: Tensor) -> Tensor:
    """A cost that deals pairs out row by row: every row's cheapest pair before any row's second.

    Keeping the cheapest of a head by it gives its rows equal counts, to one pair.

    Args:
        cost: ``[..., nQ, nK]``.

    Returns:
        int64 like ``cost``, all different within a head.
    """
    rows = torch.arange(cost.shape[-2], device=cost.device)[:, None]
    return _ranks(cost) * cost.shape[-2] + rows


def keep_counts(cost: Tensor, counts: Tensor) -> Tensor:
    """Keep the given number of cheapest pairs of every head, ties broken by position.

    Args:
        cost: ``[B, H, nQ, nK]``; mark pairs to keep first by a cost below all others.
        counts: pairs to keep, ``[B, H]``, on cost's device: they are never read by the host.

    Returns:
        Bool mask like ``cost``.
    """
    return pair_ranks(cost) < counts[..., None, None]


def tiered_counts(recall: Tensor, kept: Tensor, total: int, density: float, well_served: float) -> Tensor:
    """Budgets of heads when those that are served best give to those that are served least (AdaSpa, arXiv
    2502.21079).

    As many heads as keep more than ``well_served`` of their mass with equal budgets, at most half of them,
    spend half of theirs beyond the forced pairs; as many of those that keep least spend one and a half, or
    what they can take.

    Args:
        recall: ``[B, H]``, mass that every head keeps with an equal budget.
        kept: 0-d integer tensor, forced pairs of a head.
        total: pairs of a head.
        density: fraction of pairs that the heads have in the mean, forced pairs included.
        well_served: mass in [0, 1].

    Returns:
        int64 ``[B, H]``. Nothing is read by the host.
    """
    heads = recall.shape[1]
    place = recall.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    tier = (recall > well_served).sum(dim=-1, keepdim=True).clamp(max=heads // 2)
    free = (round(density * total) - kept).clamp(min=0)
    # Half of the free budget changes hands, or what the heads that get it can take.
    swing = torch.minimum(free // 2, total - kept - free)
    return kept + free + swing * ((place >= heads - tier).long() - (place < tier).long())


def _ranks(x: Tensor) -> Tensor:
    """Place of every element along the last dimension in ascending stable order."""
    order = x.argsort(dim=-1, stable=True)
    places = torch.arange(x.shape[-1], device=x.device).expand(order.shape)
    return torch.empty_like(order).scatter_(-1, order, places)
