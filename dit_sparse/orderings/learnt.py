"""An axis order for every head, learnt from observed attention and carried in the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation, PlanContext, check_fraction
from dit_sparse.kernels.sampling import RANKING_ROWS
from dit_sparse.layout import TokenLayout, ceil_div
from dit_sparse.orderings.base import TokenOrder, with_text
from dit_sparse.orderings.grid import all_axis_orders

Heads = slice | Tensor
"""Some heads of a call: a slice, or int64 indices."""
ALL = slice(None)
AXES = "axes"
"""Key in the layer's state: uint8 ``[B, H]``, index in :data:`AXIS_ORDERS` for every head."""


@dataclass(frozen=True)
class CarriedAxes:
    """The axis orders that another part of the method left in the state; raster order where none are."""

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[B, H, Nv]``, with the six orders and every head's choice."""
        chosen = context.state.values.get(AXES)
        if chosen is None:
            return TokenOrder()
        return TokenOrder.among(all_axis_orders(context.layout.grid, q.device), chosen.long())


@dataclass(frozen=True)
class LearntOrder:
    """Base of the orderings that choose for every head among a few orders of the grid by trying them.

    Args:
        density: fraction of blocks at which the orders are compared, in (0, 1]; at 1 nothing is learnt.
        again: fraction of the steps after which the choice is made once more; None for never.
        query_blocks: blocks of queries, spread evenly, on which the orders are compared, >= 1; shorter
            sequences use all of theirs.
    """

    key: ClassVar[str]
    """In the layer's state: uint8 ``[B, H]``, index in :meth:`orders` for every head."""

    density: float = 0.25
    again: float | None = 0.5
    query_blocks: int = 64

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ValueError(f"density must be in (0, 1], got {self.density}")
        check_fraction("again", self.again)
        if self.query_blocks < 1:
            raise ValueError(f"query_blocks must be at least 1, got {self.query_blocks}")

    def orders(self, context: PlanContext, device: torch.device) -> tuple[Tensor, ...]:
        """The orders to choose from, int64 ``[Nv]`` each."""
        raise NotImplementedError

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step, and again."""
        learnt = context.state.values.get(f"{self.key}.step")
        return self.density < 1.0 and context.due(learnt, context.relearning_step(self.again))

    def observe(self, seen: Observation) -> None:
        """Choose."""
        values = seen.context.state.values
        values[self.key] = self.best(seen)
        values[f"{self.key}.step"] = seen.context.site.step

    def best(self, seen: Observation, heads: Heads = ALL) -> Tensor:
        """Order of least error of some heads, uint8 ``[B, heads]``, index in :meth:`orders`."""
        return self._least(seen, heads, compensated=False)

    def _least(self, seen: Observation, heads: Heads, *, compensated: bool) -> Tensor:
        """See :func:`order_errors`."""
        q, k, v, out = (x[:, :, heads] for x in (seen.q, seen.k, seen.v, seen.out))
        missed, energy = order_errors(
            *(q, k, v, out, seen.lse[:, heads], seen.context, self.density, self.query_blocks),
            self.orders(seen.context, q.device),
            compensated=compensated,
        )
        # Other orders compare other queries: errors count against what those had.
        return (missed / energy.clamp(min=1e-30)).argmin(dim=0).to(torch.uint8)


@dataclass(frozen=True)
class LearntAxes(LearntOrder, CarriedAxes):
    """Choose one of the six axis orders for every head by trying them (PAROAttention, arXiv 2506.16054).

    At an observed step every order gets the mask of its heaviest blocks by exact mass; the order whose sparse
    output is nearest to the dense one wins. That is what the paper's two scores (share of near-empty blocks,
    incoherence within blocks) stand for: mass alone does not tell whether the values missed matter. It costs
    six passes over the logits of the compared rows and six sparse attentions of them, each time, per layer
    and branch.
    """

    key: ClassVar[str] = AXES

    def orders(self, context: PlanContext, device: torch.device) -> tuple[Tensor, ...]:
        """The six axis orders."""
        return all_axis_orders(context.layout.grid, device)


def axis_errors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    context: PlanContext,
    density: float,
    query_blocks: int,
) -> tuple[Tensor, Tensor]:
    """:func:`order_errors` of the six axis orders: float32 ``[6, B, H]`` each."""
    orders = all_axis_orders(context.layout.grid, q.device)
    return order_errors(q, k, v, out, lse, context, density, query_blocks, orders)


def order_errors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    context: PlanContext,
    density: float,
    query_blocks: int,
    orders: Sequence[Tensor],
    *,
    compensated: bool = False,
) -> tuple[Tensor, Tensor]:
    """What a mask of the right blocks costs in each of several orders, by dense attention.

    Right are the heaviest, or, compensated, those whose means would serve worst.

    Args:
        q, k, v, out: ``[B, N, H, D]`` in the model's token order.
        lse: float32 ``[B, H, N]``.
        context: layout, scale and block size.
        density: fraction of blocks kept.
        query_blocks: see :class:`LearntOrder`.
        orders: of the video tokens, int64 ``[Nv]`` each.
        compensated: skipped blocks enter through their means.

    Returns:
        Squared error of the queries compared, and their dense output squared; float32 ``[orders, B, H]``
        each.
    """
    layout, block_size, scale = context.layout, context.block_size, context.scale
    rows = spread_rows(layout.num_tokens, block_size[0], query_blocks, q.device)
    missed, energy = [], []
    for video_order in orders:
        order = with_text(video_order, layout)
        keys, values = kernels.permute_together((k, v), order)
        compared = order[rows]
        queries, dense = (x.index_select(1, compared) for x in (q, out))
        known = lse.index_select(-1, compared)
        if compensated:
            value = kernels.skip_error(
                queries, keys, values, dense, known, block_size, scale, rows=RANKING_ROWS
            )
        else:
            value = kernels.block_mass(queries, keys, known, block_size, scale)
        mask = _largest(value, density, layout, block_size[1])
        missed.append(
            kernels.mask_error(queries, keys, values, dense, mask, block_size, scale, compensated=compensated)
        )
        energy.append(dense.float().square().sum(dim=(1, 3)))
    return torch.stack(missed), torch.stack(energy)


def spread_rows(tokens: int, block: int, blocks: int, device: torch.device) -> Tensor:
    """Positions of all tokens, or of those in as many whole blocks, evenly spread; int64."""
    whole = tokens // block
    if ceil_div(tokens, block) <= blocks:
        return torch.arange(tokens, device=device)
    first = torch.arange(blocks, device=device) * whole // blocks * block
    return (first[:, None] + torch.arange(block, device=device)).flatten()


def _largest(value: Tensor, density: float, layout: TokenLayout, block: int) -> Tensor:
    """Bool ``[B, H, nQ, nK]``: the largest pairs of every head, those with text keys first of all."""
    columns = torch.arange(value.shape[-1], device=value.device)
    text = (columns + 1) * block > layout.video_tokens if layout.text_tokens else columns < 0
    flat = value.masked_fill(text, torch.inf).flatten(-2)
    kept = flat.topk(max(1, round(density * flat.shape[-1])), dim=-1, sorted=False).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, kept, True).view(value.shape)
