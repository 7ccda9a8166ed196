"""Mosaic: this project's own composition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from dit_sparse.corrections import LowRankResidual
from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import LearntShapes
from dit_sparse.selectors import ObservedError, ObservedMass, Selector
from dit_sparse.selectors.spend import Scope

COMPENSATING = ("residual", "pooled")
"""Corrections by which a skipped block takes part through its means."""
RELEARN = 0.5
"""Fraction of the steps at which everything is learnt again."""


@register_method
@dataclass(frozen=True)
class Mosaic(ComposedConfig):
    """Mosaic, every head cuts space-time into the blocks whose means serve best, and what is still lacking is
    carried.

    At the last dense step, and once more halfway through, dense attention is observed. Every head takes the
    shape of block (a run along one of six axis orders, or a space-time tile) that brings its output nearest
    to the dense one. The heads of a layer share one budget, spent on the blocks whose means would serve
    worst; all others take part through their mean key and value. What the output then still lacks changes
    little over the steps, and lies in few directions: it is carried with ``residual_rank`` of them per head
    and added. All following steps reuse this: planning costs them no more than moving rows.

    Where it comes from: axis orders per head from PAROAttention (arXiv 2506.16054), compensation by means and
    a budget by its error from SVG-EAR (arXiv 2603.08982), carrying what is lacking from Re-ttention (arXiv
    2505.22918). Tiles among the orders, exact errors seen once instead of estimates at every step, one budget
    for the heads of a layer, few directions instead of a second attention output, and branches that share
    their blocks are ours. docs/methods.md and docs/findings.md have the measurements.

    Args:
        density: fraction of blocks to compute, in (0, 1].
        relearn: fraction of the steps at which everything is learnt again, in [0, 1], which makes that step
            dense; None for never. Left out where it would fall directly behind the first time or on the last
            step.
        scope: "layer" spends one budget over all heads, "head" and "row" equally.
        correction: "residual" is the method's own; without it or "pooled" the blocks of largest exact mass
            are kept.
        residual_rank: directions per head, >= 1. Each takes 3 MB per layer and branch of Wan-14B at 720p,
            240 MB in all.
        share_branches: both guidance branches take the orders and blocks of the one that runs first, and
            carry residuals of their own. Their errors are then alike and cancel in the guided difference,
            which would amplify them otherwise.
    """

    name: ClassVar[str] = "mosaic"
    citation: ClassVar[str] = "this project, docs/findings.md"

    correction: str = "residual"
    relearn: float | None = RELEARN
    scope: Scope = "layer"
    share_branches: bool = True
    residual_rank: int = 8

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose learnt shapes, observed blocks and the correction."""
        compensated = self.correction in COMPENSATING
        observed = ObservedError if compensated else ObservedMass
        selector: Selector = observed(self.target_density, self.scope, again=self.relearn)
        own = LowRankResidual(self.residual_rank, again=self.relearn)
        method = self.compose(
            selector,
            LearntShapes(self.target_density, self.relearn, compensated=compensated),
            correction=own if self.correction == "residual" else None,
        )
        return replace(method, share_branches=self.share_branches)
