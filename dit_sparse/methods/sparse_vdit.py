"""Sparse-vDiT: a pattern per head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import CarriedAxes
from dit_sparse.selectors import HeadModes


@register_method
@dataclass(frozen=True)
class SparseVDiT(ComposedConfig):
    """Sparse-vDiT, one of five modes for every head: full, skip, diagonal, multi-diagonal, vertical stripes.

    Deviations from the paper, which searches offline: modes are chosen at the last dense step of every
    generation and branch, by their error against the dense output of that step; the error is relative to the
    layer's output, so that one ``trade`` and ``limit`` serve all layers; every pattern is tried at four
    widths (together about three dense attentions, once). With ``density`` the heads share a budget, and it
    decides in place of ``trade`` and ``limit``. Heads of one mode are not fused: one kernel serves all. The
    cost of a mode is its density, as in the paper.

    Args:
        density: fraction of blocks to compute, in (0, 1]; None for the paper's rule.
        trade: weight of the cost against the error, the paper's lambda, >= 0.
        limit: a head stays full where no mode's error plus weighted cost is below, the paper's epsilon, > 0.
        widths: fractions of a head's blocks at which every pattern is tried, rising, in (0, 1).

    The dense guard of 20% of the steps is ours: the search needs attention that has settled.
    """

    name: ClassVar[str] = "sparse_vdit"
    citation: ClassVar[str] = "Sparse-vDiT, arXiv 2506.03065"

    density: float | None = None
    trade: float = 0.5
    limit: float = 1.0
    widths: tuple[float, ...] = (0.0625, 0.125, 0.25, 0.5)

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose modes with the axis orders that they choose."""
        return self.compose(HeadModes(self.density, self.trade, self.limit, self.widths), CarriedAxes())
