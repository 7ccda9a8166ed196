"""Mosaic: this project's own composition, the winner of its comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from dit_sparse.corrections import LearntCompensation
from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import LearntShapes
from dit_sparse.selectors import ObservedError, ObservedMass, Selector
from dit_sparse.selectors.spend import Scope


@register_method
@dataclass(frozen=True)
class Mosaic(ComposedConfig):
    """Mosaic, every head cuts space-time into the blocks that serve it; what it skips enters through means.

    At the last dense step, and once more halfway through, dense attention is observed. Every head takes the
    shape of block (a run along one of six axis orders, or a space-time tile) that brings its output nearest
    to the dense one when the blocks whose means serve worst are computed and the others replaced by their
    means. The heads of a layer share one budget for the blocks of largest such error. All following steps
    reuse orders and masks: planning costs them nothing, compensation about 2% of dense attention.

    Where it comes from: axis orders per head from PAROAttention (arXiv 2506.16054), masks from an observed
    step from AdaSpa (arXiv 2502.21079), compensation by means and a budget for its errors from SVG-EAR (arXiv
    2603.08982), which estimates them at every step. The exact error of an observed step, tiles among the
    orders, judging orders by the output after compensation, and one budget for the heads of a layer are ours.
    docs/findings.md has the measurements that led here. Without compensation (``correction="none"``) orders
    and blocks are chosen by exact mass instead.

    Args:
        density: fraction of blocks to compute, in (0, 1].
        relearn: fraction of the steps at which orders and masks are learnt again, in [0, 1], which makes that
            step dense; None for never.
        scope: "layer" spends one budget over all heads, "head" and "row" equally.
        share_branches: both guidance branches take the orders and blocks of the one that runs first. Their
            errors are then alike and cancel in the guided difference, which would amplify them otherwise.
    """

    name: ClassVar[str] = "mosaic"
    citation: ClassVar[str] = "this project, docs/findings.md"

    correction: str = "learnt"
    relearn: float | None = 0.5
    scope: Scope = "layer"
    share_branches: bool = True

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose learnt shapes, observed blocks and the correction."""
        density, compensated = self.target_density, self.correction in ("pooled", "learnt")
        observed = ObservedError if compensated else ObservedMass
        selector: Selector = observed(density, self.scope, again=self.relearn)
        method = self.compose(
            selector,
            LearntShapes(density, self.relearn, compensated=compensated),
            correction=LearntCompensation(again=self.relearn) if self.correction == "learnt" else None,
        )
        return replace(method, share_branches=self.share_branches)
