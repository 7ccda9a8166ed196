"""Static masks from the exact block mass of an observed step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation, PlanContext, check_fraction
from dit_sparse.layout import pack_bits, unpack_bits
from dit_sparse.orderings import with_text
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.budgets import keep_counts, row_ranks, tiered_counts
from dit_sparse.selectors.spend import Scope, check_scope, spend

BITS, LSE, STEP = "observed_mass.bits", "observed_mass.lse", "observed_mass.step"


@dataclass(frozen=True)
class ObservedMass:
    """Keep the blocks that were heaviest when attention was last observed (AdaSpa, arXiv 2502.21079;
    PAROAttention, arXiv 2506.16054).

    At the last dense step the share of the softmax in every block is summed exactly; the mask drawn from it
    is carried as bits and serves the following steps. It may be drawn once more later on: from a second
    observed step, or from the queries and keys of a sparse step with the log-sum-exp of the first.

    Args:
        density: fraction of pairs to keep in (0, 1], forced pairs included.
        scope: "row", equally many pairs in every row of a head; "head", one budget per head; "layer", one
            over all heads of a sample.
        tier_recall: None for no tiers. A number in [0, 1] moves budget between the rows of heads as AdaSpa
            does: as many heads as capture more than this mass with equal budgets, at most half of them, spend
            half of theirs beyond the forced pairs; as many of those that capture least spend one and a half.
        again: fraction of the steps after which the mask is drawn once more; None for never.
        reuse_lse: draw it with the log-sum-exp of the first time, without a dense step.
    """

    density: float = 0.25
    scope: Scope = "head"
    tier_recall: float | None = None
    again: float | None = None
    reuse_lse: bool = False

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scope(self.scope)
        if self.tier_recall is not None and self.scope != "row":
            raise ValueError(f"tiers need scope='row', got {self.scope!r}: give tier_recall=None with it")
        for name in ("tier_recall", "again"):
            check_fraction(name, getattr(self, name))

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step, and again unless the old log-sum-exp serves."""
        again = None if self.reuse_lse else context.relearning_step(self.again)
        return self.density < 1.0 and context.due(context.state.values.get(STEP), again)

    def observe(self, seen: Observation) -> None:
        """Draw the mask; keep the log-sum-exp, float16 ``[B, H, N]``, where it will be needed again."""
        values, step = seen.context.state.values, seen.context.site.step
        self._draw(seen.problem(), seen.lse)
        values[STEP] = step
        again = seen.context.step_at(self.again)
        if self.reuse_lse and again is not None and step < again:
            values[LSE] = seen.lse.half()

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``.

        Raises:
            ValueError: if nothing was observed yet.
        """
        if self.density == 1.0:
            return torch.ones(given.shape, dtype=torch.bool, device=given.q.device)
        values, again = given.context.state.values, given.context.step_at(self.again)
        if LSE in values and again is not None and given.context.site.step >= again:
            self._draw(given, values.pop(LSE).float())
        return unpack_bits(given.context.learnt(BITS), given.forced.shape[1]) | given.forced

    def _draw(self, given: SelectionInput, lse: Tensor) -> None:
        """Carry the mask of the heaviest pairs; ``lse`` ``[B, H, N]`` is in the model's token order."""
        context = given.context
        order = with_text(given.order.q, context.layout)
        if order is not None:
            lse = lse.gather(-1, order.expand(lse.shape))
        mass = kernels.block_mass(given.q, given.k, lse, context.block_size, context.scale)
        mask = spend(-mass, given.forced, self.density, self.scope)
        if self.tier_recall is not None:
            mask = self._tiered(mass, mask, given.forced, self.tier_recall)
        context.state.values[BITS] = pack_bits(mask)

    def _tiered(self, mass: Tensor, even: Tensor, forced: Tensor, well_served: float) -> Tensor:
        """Budget moved from the heads that the mask ``even`` serves best to those it serves least."""
        recall = (mass * even).sum(dim=(-1, -2)) / mass.sum(dim=(-1, -2))
        counts = tiered_counts(recall, forced.sum(), forced.numel(), self.density, well_served)
        ranks = row_ranks((-mass).masked_fill(forced, -torch.inf))
        return keep_counts(ranks.masked_fill(forced, -1), counts)
