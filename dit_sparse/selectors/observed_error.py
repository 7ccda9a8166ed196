"""Static masks from the exact error of compensation at an observed step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation, PlanContext, check_fraction
from dit_sparse.layout import pack_bits, unpack_bits
from dit_sparse.orderings import with_text
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.spend import Scope, check_scope, spend

BITS, STEP = "observed_error.bits", "observed_error.step"


@dataclass(frozen=True)
class ObservedError:
    """Keep the blocks whose means served worst when attention was last observed.

    For methods that compensate: at the last dense step the exact error of the output is taken that every pair
    causes when its mean key and mean value stand in for it (:func:`~dit_sparse.kernels.skip_error`).
    Error-aware routing (SVG-EAR, arXiv 2603.08982) estimates it from centroids at every step; seen once, it
    needs no estimate, and it lasts as block mass does (docs/findings.md). The mask is carried as bits and
    serves the following steps.

    Args:
        density: fraction of pairs to keep in (0, 1], forced pairs included.
        scope: "row", equally many pairs in every row of a head; "head", one budget per head; "layer", one
            over all heads of a sample.
        again: fraction of the steps after which the mask is drawn once more, from a dense step; None for
            never.
        rows: queries of every query block, spread evenly, that stand for it, >= 1: all of them cost about one
            and a half dense attentions.
    """

    density: float = 0.25
    scope: Scope = "layer"
    again: float | None = None
    rows: int = 32

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scope(self.scope)
        check_fraction("again", self.again)
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step, and again."""
        return self.density < 1.0 and context.due(context.state.values.get(STEP), context.step_at(self.again))

    def observe(self, seen: Observation) -> None:
        """Draw the mask."""
        given, context = seen.problem(), seen.context
        order, out, lse = with_text(given.order.q, context.layout), seen.out, seen.lse
        if order is not None:
            out, lse = kernels.permute_rows(out, order), lse.gather(-1, order.expand(lse.shape))
        block_q, block_k = context.block_size
        apart = max(1, block_q // self.rows)
        if block_q % apart:
            apart = 1
        error = kernels.skip_error(
            given.q[:, ::apart],
            given.k,
            given.v,
            out[:, ::apart],
            lse[..., ::apart],
            (block_q // apart, block_k),
            context.scale,
        )
        context.state.values[BITS] = pack_bits(spend(-error, given.forced, self.density, self.scope))
        context.state.values[STEP] = context.site.step

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``.

        Raises:
            ValueError: if nothing was observed yet.
        """
        if self.density == 1.0:
            return torch.ones(given.shape, dtype=torch.bool, device=given.q.device)
        return unpack_bits(given.context.learnt(BITS), given.forced.shape[1]) | given.forced
