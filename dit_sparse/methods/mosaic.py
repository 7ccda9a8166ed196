"""Mosaic: this project's own composition, the winner of its comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from dit_sparse.corrections import LearntCompensation
from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import LearntShapes
from dit_sparse.selectors import ObservedError, ObservedMass, Selector
from dit_sparse.selectors.spend import Scope


@register_method
@dataclass(frozen=True)
class Mosaic(ComposedConfig):
    """Mosaic, every head cuts space-time into the blocks that serve it; skipped blocks help where they can.

    At the last dense step, and once more halfway through, dense attention is observed. Every head takes the
    shape of block (a run along one of six axis orders, or a space-time tile) that brings its output nearest
    to the dense one with its heaviest blocks alone. The heads of a layer share one budget for the blocks of
    largest exact mass. Heads whose error falls to half by it let skipped blocks enter through their means.
    Both guidance branches use what the first of them learnt. All following steps reuse it: planning costs
    them nothing, compensation about 2% of dense attention.

    Where it comes from: axis orders per head from PAROAttention (arXiv 2506.16054), exact block mass of an
    observed step from AdaSpa (arXiv 2502.21079), compensation by means from SVG-EAR (arXiv 2603.08982). Tiles
    among the orders, one budget for the heads of a layer, compensation by head, and branches that share
    their blocks are ours. docs/findings.md has the measurements that led here.

    Args:
        density: fraction of blocks to compute, in (0, 1].
        relearn: fraction of the steps at which orders and masks are learnt again, in [0, 1], which makes that
            step dense; None for never.
        scope: "layer" spends one budget over all heads, "head" and "row" equally.
        rank: "mass", or "error": the error of the output when a pair's means stand in for it.
        share_branches: both guidance branches take the orders and blocks of the one that runs first. Their
            errors are then alike and cancel in the guided difference, which would amplify them otherwise.
    """

    name: ClassVar[str] = "mosaic"
    citation: ClassVar[str] = "this project, docs/findings.md"

    correction: str = "learnt"
    relearn: float | None = 0.5
    scope: Scope = "layer"
    rank: Literal["mass", "error"] = "mass"
    share_branches: bool = True

    def __post_init__(self) -> None:
        if self.rank not in ("mass", "error"):
            raise ValueError(f"rank must be 'mass' or 'error', got {self.rank!r}")

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose learnt shapes, observed blocks and the correction."""
        by_error = self.rank == "error"
        observed = ObservedError if by_error else ObservedMass
        selector: Selector = observed(self.target_density, self.scope, again=self.relearn)
        method = self.compose(
            selector,
            LearntShapes(self.target_density, self.relearn, compensated=by_error),
            correction=LearntCompensation(again=self.relearn) if self.correction == "learnt" else None,
        )
        return replace(method, share_branches=self.share_branches)
