"""Modes per head: full, skip, diagonal, multi-diagonal and vertical stripes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation, PlanContext
from dit_sparse.kernels import mask_error
from dit_sparse.layout import pack_bits, unpack_bits
from dit_sparse.orderings import AXES, AXIS_ORDERS, axis_order, with_text
from dit_sparse.selectors.allocation import allocate
from dit_sparse.selectors.base import SelectionInput, check_density, forced_pairs
from dit_sparse.selectors.budgets import pair_ranks

MODES = ("skip", "diagonal", "multi-diagonal", "stripes", "full")
SKIP, DIAGONAL, MULTI_DIAGONAL, STRIPES, FULL = range(5)
THW, HWT = (AXIS_ORDERS.index(axes) for axes in ("THW", "HWT"))

STRIPE_QUERIES = 4096
"""Queries, about, that the heaviest key blocks are found with; shorter sequences use all of theirs."""
BITS, MODE, STEP = "modes.bits", "modes.mode", "modes.step"


def by_density(density: Tensor) -> Tensor:
    """The paper's cost of a mode: the fraction of blocks that it computes."""
    return density


@dataclass(frozen=True)
class HeadModes:
    """Give every head the mode that serves it best for its cost (Sparse-vDiT, arXiv 2506.03065).

    At the last dense step every mode is tried at several widths, and its error is measured against the dense
    output, relative to the mean square of the layer's output over all heads: a head whose output is small may
    be skipped. Without ``density`` a head takes the mode of smallest ``error + trade * cost``, or stays full
    where that is above ``limit``. With ``density`` the heads share its budget at one common exchange rate of
    error for cost; the head at the margin gets a width in between, so the budget is met exactly.

    Diagonal: a band in raster order. Multi-diagonal: a band in the axis order HWT. Stripes: the key blocks
    that hold most of the softmax, for all queries. These keep text rows and columns and the diagonal. Skip
    computes the rows of text blocks and leaves all others empty; their output is zero.

    Needs the ordering :class:`~dit_sparse.orderings.CarriedAxes`, which puts the tokens in every head's
    order. The search costs a sparse attention per band or stripe mode and width.

    Args:
        density: fraction of pairs to compute in (0, 1]; None for the rule above.
        trade: weight of the cost against the error, the paper's lambda, >= 0.
        limit: above it a head stays full, the paper's epsilon, > 0.
        widths: fractions of a head's pairs, rising, each in (0, 1), at which every band mode is tried.
        cost: what a head costs that computes these fractions of its pairs; rising. A measured latency can
            stand here.
    """

    density: float | None = None
    trade: float = 0.5
    limit: float = 1.0
    widths: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5)
    cost: Callable[[Tensor], Tensor] = by_density

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.trade < 0 or self.limit <= 0:
            raise ValueError(f"trade must be >= 0 and limit > 0, got {self.trade} and {self.limit}")
        rising = sorted(set(self.widths)) == list(self.widths)
        if not (self.widths and rising and self.widths[0] > 0.0 and self.widths[-1] < 1.0):
            raise ValueError(f"widths must be rising fractions in (0, 1), got {self.widths}")

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step."""
        return self.density != 1.0 and context.due(context.state.values.get(STEP))

    def observe(self, seen: Observation) -> None:
        """Search; carry every head's axis order, mode (index in :data:`MODES`) and mask."""
        context = seen.context
        layout, block = context.layout, context.block_size
        forced, text = (
            forced_pairs(
                layout.num_tokens, layout.video_tokens, layout.text_tokens, block, seen.q.device, diagonal=own
            )
            for own in (True, False)
        )
        text_rows = text.all(dim=-1)
        raster, by_place = (_ordered(seen, axes) for axes in ("THW", "HWT"))
        band = band_ranks(forced, text_rows, block)
        stripes = stripe_ranks(raster, forced, text_rows, context)
        tried = ((DIAGONAL, raster, band), (MULTI_DIAGONAL, by_place, band), (STRIPES, raster, stripes))
        sizes = self._sizes(forced, text_rows)
        errors = []
        for size in sizes[1:-1].unbind():
            by_mode = [mask_error(*x[:4], ranks < size, block, context.scale) for _, x, ranks in tried]
            errors.append(torch.stack(by_mode, dim=-1).min(dim=-1))
        q, _, _, out, _ = raster
        skipped = text_rows.repeat_interleave(block[0])[: q.shape[1], None, None].logical_not()
        energy = out.float().square()
        nothing = torch.zeros_like(errors[0].values)
        error = torch.stack(
            [(energy * skipped).sum(dim=(1, 3)), *(found.values for found in errors), nothing], dim=-1
        )
        error = error / energy.sum(dim=(1, 3)).mean(dim=-1)[:, None, None].clamp(min=1e-30)
        counts = self._counts(error, sizes)
        # Between two levels a head has the mode of the wider one, below full that of the widest band.
        level = torch.searchsorted(sizes, counts).clamp(min=1, max=len(errors))
        found = torch.stack([found.indices + DIAGONAL for found in errors], dim=-1)
        mode = found.gather(-1, level[..., None] - 1)[..., 0]
        kept = torch.where((mode == STRIPES)[..., None, None], stripes, band) < counts[..., None, None]
        mode = torch.where(counts == sizes[-1], FULL, torch.where(counts == sizes[0], SKIP, mode))
        context.state.values.update(
            {
                AXES: torch.where(mode == MULTI_DIAGONAL, HWT, THW).to(torch.uint8),
                MODE: mode.to(torch.uint8),
                BITS: pack_bits(kept),
                STEP: context.site.step,
            }
        )

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``.

        Raises:
            ValueError: if nothing was observed yet, or the ordering is not the heads' own.
        """
        if self.density == 1.0:
            return torch.ones(given.shape, dtype=torch.bool, device=given.q.device)
        bits = given.context.learnt(BITS)
        if len(given.order.candidates) != len(AXIS_ORDERS):
            raise ValueError("HeadModes needs the axis orders of its heads: use the ordering CarriedAxes()")
        return unpack_bits(bits, given.forced.shape[1])

    def _sizes(self, forced: Tensor, text_rows: Tensor) -> Tensor:
        """Pairs of a head at every level: skip, forced pairs, the widths, full; int64 ``[L]``."""
        total, kept = forced.numel(), forced.sum()
        wider = [kept.clamp(min=round(width * total)) for width in self.widths]
        return torch.stack([text_rows.sum() * forced.shape[1], kept, *wider, torch.full_like(kept, total)])

    def _counts(self, error: Tensor, sizes: Tensor) -> Tensor:
        """Pairs of every head, int64 ``[B, H]``, from the errors of all levels ``[B, H, L]``."""
        total = sizes[-1]
        cost = self.cost(sizes / total)
        if self.density is None:
            loss, level = (error + self.trade * cost)[..., :-1].min(dim=-1)
            return torch.where(loss > self.limit, total, sizes[level])
        counts = allocate(error, cost, sizes, self.density)
        # No head is skipped in part.
        partly = torch.where(2 * counts > sizes[0] + sizes[1], sizes[1], sizes[0])
        return torch.where(counts < sizes[1], partly, counts)


def band_ranks(forced: Tensor, text_rows: Tensor, block_size: tuple[int, int]) -> Tensor:
    """Places of the pairs ``[nQ, nK]`` by distance from the diagonal, after the forced ones."""
    start, other = (
        torch.arange(n, device=forced.device) * size for n, size in zip(forced.shape, block_size, strict=True)
    )
    return _ranked((start[:, None] - other).abs().float(), forced, text_rows)


def stripe_ranks(
    ordered: tuple[Tensor, ...], forced: Tensor, text_rows: Tensor, context: PlanContext
) -> Tensor:
    """Places of the pairs ``[B, H, nQ, nK]`` by the mass of their key block over evenly spread queries, after
    the forced ones."""
    q, k, _, _, lse = ordered
    apart = max(1, q.shape[1] // STRIPE_QUERIES)
    mass = kernels.block_mass(q[:, ::apart], k, lse[..., ::apart], context.block_size, context.scale)
    mass = mass.sum(dim=-2, keepdim=True)
    heaviest = mass.amax(dim=-1, keepdim=True)
    return _ranked((heaviest - mass).expand(-1, -1, *forced.shape), forced, text_rows)


def _ranked(cost: Tensor, forced: Tensor, text_rows: Tensor) -> Tensor:
    """Ranks by a cost >= 0: rows of text first, then what else is forced."""
    return pair_ranks(cost.masked_fill(forced, -1.0).masked_fill(text_rows[:, None], -2.0))


def _ordered(seen: Observation, axes: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, out and lse of an observed call, video in an axis order, then text."""
    layout = seen.context.layout
    order = with_text(axis_order(layout.grid, axes, seen.q.device), layout)
    q, k, v, out = (kernels.permute_rows(x, order) for x in (seen.q, seen.k, seen.v, seen.out))
    return q, k, v, out, seen.lse.index_select(-1, order)
