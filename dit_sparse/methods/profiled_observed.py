"""Heads of a profile that learn in the run: their shapes of block and their pairs, as mosaic learns them."""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dit_sparse.layout import pack_bits, unpack_bits
from dit_sparse.methods.mosaic import RELEARN
from dit_sparse.methods.profiled_rows import HeadRows, indices
from dit_sparse.orderings import CHOICE, LearntShapes, TokenOrder, shape_orders
from dit_sparse.patterns import OBSERVED
from dit_sparse.selectors import ObservedHeads
from dit_sparse.selectors.spend import spend

if TYPE_CHECKING:
    from dit_sparse.context import Observation, PlanContext

PAIRS = "profile.observed"
"""Key in the layer's state: ((step groups, bits ``[B, heads, nQ, ceil(nK / 8)]``), ...)."""
DECIMALS = 7
"""Of a density: of two float32 numbers this close none is meant."""


@dataclass(frozen=True)
class Share:
    """What the observed heads of a layer spend together in a step group.

    Args:
        heads: their indices, ascending.
        density: mean of theirs, in (0, 1].
    """

    heads: tuple[int, ...]
    density: float


@dataclass(frozen=True)
class LearningHeads:
    """What the observed heads learn from this run's dense attention.

    Attention is observed at the last dense step, and once more at the step of
    :data:`~dit_sparse.methods.mosaic.RELEARN`, which is dense then. Every head takes the shape of block that
    serves it best (:class:`~dit_sparse.orderings.LearntShapes`); of all pairs of a layer's observed heads
    those are kept whose means would serve worst (:class:`~dit_sparse.selectors.ObservedError`), up to the sum
    of the heads' densities. An observation serves the step groups up to the next one: the heads that are
    observed in any of them learn, and every group spends its own budget.

    Args:
        rows: what the profile says.
        compensated: skipped pairs enter through their means; the heaviest pairs are kept otherwise.
    """

    rows: HeadRows
    compensated: bool = True

    def wants(self, context: PlanContext, key: str) -> bool:
        """Whether what lies under ``key`` in the state is to be learnt at this call."""
        again, layer = context.relearning_step(RELEARN), context.site.layer
        return context.due(context.state.values.get(f"{key}.step"), again) and any(
            self.rows.has_observed(group, layer) for group in self.rows.groups_until(context.site, again)
        )

    def learn_shapes(self, seen: Observation) -> None:
        """Carry the shapes, uint8 ``[B, H]``; 0 for heads that do not learn."""
        context, (batch, _, heads, _) = seen.context, seen.q.shape
        shares = self._shares(context)
        counts = [len(share.heads) for share in shares]
        spent = fsum(share.density * count for share, count in zip(shares, counts))
        learner = LearntShapes(round(spent / sum(counts), DECIMALS), compensated=self.compensated)
        choice = torch.zeros(batch, heads, dtype=torch.uint8, device=seen.q.device)
        which = indices(_together(shares), heads, seen.q.device)
        choice[:, which] = learner.best(seen, which)
        _carry(context, CHOICE, choice)

    def learn_pairs(self, seen: Observation) -> None:
        """Carry the pairs of every step group that this observation serves."""
        context, heads, device = seen.context, seen.q.shape[2], seen.q.device
        shares = self._shares(context)
        together = _together(shares)
        which = indices(together, heads, device)
        choice = context.learnt(CHOICE)[:, which].long()
        order = TokenOrder.among(shape_orders(context, device), choice)
        found = ObservedHeads.sorted(seen, order, which)
        worth, drawn = found.worth(self.compensated), []
        for share, groups in shares.items():
            own = indices([together.index(head) for head in share.heads], len(together), device)
            mask = spend(-worth[:, own], found.given.forced, share.density, "layer")
            drawn.append((tuple(groups), pack_bits(mask)))
        _carry(context, PAIRS, tuple(drawn))

    def order(self, context: PlanContext, axes: Tensor, learning: Tensor, batch: int) -> TokenOrder:
        """Learnt shapes of the observed heads, raster order before there are any; axis orders of the others.

        Args:
            context: of the call.
            axes: index of every head's axis order, int64 ``[H]``, 0 for observed heads.
            learning: bool ``[H]``, the observed heads.
            batch: B.
        """
        learnt = context.state.values.get(CHOICE)
        choice = axes.expand(batch, -1) if learnt is None else torch.where(learning, learnt.long(), axes)
        return TokenOrder.among(shape_orders(context, axes.device), choice)

    def pairs(self, context: PlanContext, forced: Tensor) -> Tensor:
        """Pairs of the observed heads of this step group, bool ``[B, heads, nQ, nK]``.

        Raises:
            ValueError: if nothing was observed yet.
        """
        group = self.rows.group(context.site)
        bits = next(bits for groups, bits in context.learnt(PAIRS) if group in groups)
        return unpack_bits(bits, forced.shape[1]) | forced

    def _shares(self, context: PlanContext) -> dict[Share, list[int]]:
        """What is spent in the step groups that an observation at this call serves, and in which of them."""
        found: dict[Share, list[int]] = {}
        for group in self.rows.groups_until(context.site, context.relearning_step(RELEARN)):
            row = self.rows.row(context, group)
            if heads := row.heads_of(OBSERVED):
                mean = fsum(row.density[head] for head in heads) / len(heads)
                found.setdefault(Share(tuple(heads), round(mean, DECIMALS)), []).append(group)
        return found


def _together(shares: dict[Share, list[int]]) -> list[int]:
    """All heads that learn, ascending."""
    return sorted({head for share in shares for head in share.heads})


def _carry(context: PlanContext, key: str, value: object) -> None:
    context.state.values[key], context.state.values[f"{key}.step"] = value, context.site.step
