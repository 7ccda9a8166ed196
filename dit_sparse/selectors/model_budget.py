"""One budget for all layers of a model, spent where a common exchange rate says."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dit_sparse.selectors.base import SelectionInput
from dit_sparse.selectors.spend import SCOPES, spend

ModelScope = Literal["row", "head", "layer", "model"]
MODEL_SCOPES = (*SCOPES, "model")
POINTS = 4096
"""Costs that stand for those of a layer: the budget is met to one part in this many."""
PLACE, CUT, AIM, COSTS, SPENT = (f"model_budget.{name}" for name in ("place", "cut", "aim", "costs", "spent"))


def check_model_scope(scope: str) -> None:
    """Raise ValueError unless ``scope`` is one of :data:`MODEL_SCOPES`."""
    if scope not in MODEL_SCOPES:
        raise ValueError(f"scope must be one of {', '.join(MODEL_SCOPES)}, got {scope!r}")


def spend_at(given: SelectionInput, cost: Tensor, density: float, scope: ModelScope) -> Tensor:
    """:func:`~dit_sparse.selectors.spend.spend`, with "model" as a fourth scope.

    All layers of a guidance branch then keep the pairs below one cost, which was found from all their costs
    at the step before; at the first sparse step every layer spends alone. What a step spends above or below
    the budget is taken off or added at the next, so that the mean over layers follows the budget while costs
    drift from step to step. Costs must mean the same in all layers, as shares of the softmax do.

    Args:
        given: the problem; carried values lie in ``given.context.state.shared``.
        cost: float ``[B, H, nQ, nK]``.
        density: fraction of pairs to keep in (0, 1].
        scope: "row", "head", "layer" or "model".

    Returns:
        Bool mask like ``cost``. Nothing is read by the host.
    """
    if scope != "model":
        return spend(cost, given.forced, density, scope)
    if density == 1.0:
        return torch.ones_like(cost, dtype=torch.bool)
    shared, place = given.context.state.shared, (given.context.site.step, tuple(cost.shape))
    if shared.get(PLACE) != place:
        _close_step(shared, density, same_shape=PLACE in shared and shared[PLACE][1] == place[1])
        shared[PLACE] = place
    alone = spend(cost, given.forced, density, "layer")
    cheapest = torch.zeros_like(alone).scatter_(-1, cost.argmin(dim=-1, keepdim=True), True)
    first = cheapest | given.forced
    ranked = cost.masked_fill(first, -torch.inf)
    mask = alone if shared[CUT] is None else (ranked <= shared[CUT][:, None, None, None]) | first
    shared[COSTS].append(_points(ranked))
    shared[SPENT].append(mask.float().mean(dim=(1, 2, 3)))
    return mask


def _close_step(shared: dict[str, Any], density: float, same_shape: bool) -> None:
    """Turn what all layers left of a step into the cost below which the next one keeps pairs."""
    if same_shape:
        spent = torch.stack(shared[SPENT]).mean(dim=0)
        shared[AIM] = (shared[AIM] + density - spent).clamp(0.0, 1.0)
        costs = torch.cat(shared[COSTS], dim=-1).sort(dim=-1).values
        index = (shared[AIM] * costs.shape[-1]).long().sub(1).clamp(min=0)
        shared[CUT] = costs.gather(-1, index[:, None])[:, 0]
    else:
        shared[CUT], shared[AIM] = None, density
    shared[COSTS], shared[SPENT] = [], []


def _points(cost: Tensor) -> Tensor:
    """Costs at even places of their order, ``[B, up to POINTS]``."""
    ranked = cost.flatten(1).sort(dim=-1).values
    count = min(POINTS, ranked.shape[-1])
    places = (2 * torch.arange(count, device=cost.device) + 1) * ranked.shape[-1] // (2 * count)
    return ranked[:, places]
