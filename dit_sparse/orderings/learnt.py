"""An axis order for every head, learnt from observed attention and carried in the state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation, PlanContext
from dit_sparse.layout import TokenLayout, ceil_div
from dit_sparse.orderings.base import TokenOrder, with_text
from dit_sparse.orderings.grid import AXIS_ORDERS, axis_order

AXES = "axes"
"""Key in the layer's state: uint8 ``[B, H]``, index in :data:`AXIS_ORDERS` for every head."""
STEP = "axes.step"


@dataclass(frozen=True)
class CarriedAxes:
    """The axis orders that another part of the method left in the state; raster order where none are."""

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[B, H, Nv]``, with the six orders and every head's choice."""
        chosen = context.state.values.get(AXES)
        if chosen is None:
            return TokenOrder()
        choice = chosen.long()
        candidates = tuple(axis_order(context.layout.grid, axes, q.device) for axes in AXIS_ORDERS)
        order = torch.stack(candidates)[choice]
        return TokenOrder(order, order, candidates=candidates, choice=choice)


@dataclass(frozen=True)
class LearntAxes(CarriedAxes):
    """Choose one of the six axis orders for every head by trying them (PAROAttention, arXiv 2506.16054).

    At an observed step every order gets the mask of its heaviest blocks by exact mass; the order whose sparse
    output is nearest to the dense one wins. That is what the paper's two scores (share of near-empty blocks,
    incoherence within blocks) stand for: mass alone does not tell whether the values missed matter. It costs
    six passes over the logits of the compared rows and six sparse attentions of them, each time, per layer
    and branch.

    Args:
        density: fraction of blocks at which the orders are compared, in (0, 1]; at 1 nothing is learnt.
        again: fraction of the steps after which the choice is made once more; None for never.
        query_blocks: blocks of queries, spread evenly, on which the orders are compared, >= 1; shorter
            sequences use all of theirs.
    """

    density: float = 0.25
    again: float | None = 0.5
    query_blocks: int = 64

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ValueError(f"density must be in (0, 1], got {self.density}")
        if self.again is not None and not 0.0 <= self.again <= 1.0:
            raise ValueError(f"again must be in [0, 1] or None, got {self.again}")
        if self.query_blocks < 1:
            raise ValueError(f"query_blocks must be at least 1, got {self.query_blocks}")

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step, and again."""
        return self.density < 1.0 and context.due(context.state.values.get(STEP), context.step_at(self.again))

    def observe(self, seen: Observation) -> None:
        """Choose."""
        context = seen.context
        layout, (q_size, k_size) = context.layout, context.block_size
        rows = _spread_rows(layout.num_tokens, q_size, self.query_blocks, seen.q.device)
        errors = []
        for axes in AXIS_ORDERS:
            order = with_text(axis_order(layout.grid, axes, seen.q.device), layout)
            k, v = (kernels.permute_rows(x, order) for x in (seen.k, seen.v))
            compared = order[rows]
            q, out = (x.index_select(1, compared) for x in (seen.q, seen.out))
            lse = seen.lse.index_select(-1, compared)
            mass = kernels.block_mass(q, k, lse, context.block_size, context.scale)
            mask = _heaviest(mass, self.density, layout, k_size)
            missed = kernels.mask_error(q, k, v, out, mask, context.block_size, context.scale)
            # Other orders compare other queries: errors count against what those had.
            errors.append(missed / out.float().square().sum(dim=(1, 3)).clamp(min=1e-30))
        context.state.values[AXES] = torch.stack(errors).argmin(dim=0).to(torch.uint8)
        context.state.values[STEP] = context.site.step


def _spread_rows(tokens: int, block: int, blocks: int, device: torch.device) -> Tensor:
    """Positions of all tokens, or of those in as many whole blocks, evenly spread; int64."""
    whole = tokens // block
    if ceil_div(tokens, block) <= blocks:
        return torch.arange(tokens, device=device)
    first = torch.arange(blocks, device=device) * whole // blocks * block
    return (first[:, None] + torch.arange(block, device=device)).flatten()


def _heaviest(mass: Tensor, density: float, layout: TokenLayout, block: int) -> Tensor:
    """Bool ``[B, H, nQ, nK]``: the heaviest pairs of every head, those with text keys first of all."""
    columns = torch.arange(mass.shape[-1], device=mass.device)
    text = (columns + 1) * block > layout.video_tokens if layout.text_tokens else columns < 0
    flat = mass.masked_fill(text, torch.inf).flatten(-2)
    kept = flat.topk(max(1, round(density * flat.shape[-1])), dim=-1, sorted=False).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, kept, True).view(mass.shape)
