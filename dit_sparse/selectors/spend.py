"""One budget, spent on the cheapest pairs of a row, a head or a layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dit_sparse.selectors.base import keep_smallest
from dit_sparse.selectors.budgets import row_ranks

Scope = Literal["row", "head", "layer"]
SCOPES = ("row", "head", "layer")


def check_scope(scope: str) -> None:
    """Raise ValueError unless ``scope`` is one of :data:`SCOPES`."""
    if scope not in SCOPES:
        raise ValueError(f"scope must be 'row', 'head' or 'layer', got {scope!r}")


def spend(cost: Tensor, forced: Tensor, density: float, scope: Scope) -> Tensor:
    """Keep the forced pairs, then the cheapest pair of every row, and of the others the cheapest.

    Args:
        cost: float ``[B, H, nQ, nK]``.
        forced: bool ``[nQ, nK]``; these pairs count towards the budget and are kept even beyond it.
        density: fraction of pairs to keep in (0, 1]; met to one pair per budget.
        scope: "row": all rows of a head get equally many pairs, to one, but for those that are forced to have
            more; "head": one budget per head; "layer": one over all heads of a sample.

    Returns:
        Bool mask like ``cost``.
    """
    check_scope(scope)
    if scope == "row":
        cheapest = _cheapest_of_rows(cost)
        ranks = row_ranks(cost.masked_fill(cheapest, -torch.inf).masked_fill(forced, -torch.inf))
        return keep_smallest(ranks.masked_fill(cheapest, -1).masked_fill(forced, -2), density, 2) | forced
    return keep_smallest(_in_turn(cost, forced), density, 3 if scope == "layer" else 2) | forced


def spend_by_head(cost: Tensor, forced: Tensor, pairs: Tensor, most: int) -> Tensor:
    """:func:`spend` with scope "head" and a budget for every head, all in one selection.

    Args:
        cost: float ``[B, H, nQ, nK]``.
        forced: bool ``[nQ, nK]``.
        pairs: pairs that every head keeps, int64 ``[H]`` on the device of ``cost``, so that no call waits for
            them; at least 1.
        most: the largest of them.

    Returns:
        Bool mask like ``cost``.
    """
    flat = _in_turn(cost, forced).flatten(-2)
    kept = flat.topk(most, dim=-1, largest=False, sorted=True).indices
    within = torch.arange(most, device=cost.device) < pairs[:, None]
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, kept, within.expand_as(kept))
    return mask.view_as(cost) | forced


def _cheapest_of_rows(cost: Tensor) -> Tensor:
    return torch.zeros_like(cost, dtype=torch.bool).scatter_(-1, cost.argmin(dim=-1, keepdim=True), True)


def _in_turn(cost: Tensor, forced: Tensor) -> Tensor:
    """Costs by which the forced pairs come first, then the cheapest of every row."""
    lowest = torch.finfo(cost.dtype).min
    return cost.masked_fill(_cheapest_of_rows(cost), lowest).masked_fill(forced, -torch.inf)
