"""Static masks from the exact error of compensation at an observed step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.context import Observation, PlanContext, check_fraction
from dit_sparse.kernels.sampling import RANKING_ROWS
from dit_sparse.layout import pack_bits, unpack_bits
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.observed_heads import ObservedHeads
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
        rows: queries of every query block that stand for it, >= 1: 32 of 128 cost about one dense attention
            on an H200.
    """

    density: float = 0.25
    scope: Scope = "layer"
    again: float | None = None
    rows: int = RANKING_ROWS

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scope(self.scope)
        check_fraction("again", self.again)
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step, and again."""
        return self.density < 1.0 and context.due(
            context.state.values.get(STEP), context.relearning_step(self.again)
        )

    def observe(self, seen: Observation) -> None:
        """Draw the mask."""
        given, values = seen.problem(), seen.context.state.values
        error = ObservedHeads.of(seen, given).skip_error(self.rows)
        values[BITS] = pack_bits(spend(-error, given.forced, self.density, self.scope))
        values[STEP] = seen.context.site.step

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``.

        Raises:
            ValueError: if nothing was observed yet.
        """
        if self.density == 1.0:
            return torch.ones(given.shape, dtype=torch.bool, device=given.q.device)
        return unpack_bits(given.context.learnt(BITS), given.forced.shape[1]) | given.forced
