"""SALE: 4-bit estimate of every element against the exact local part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import OrderingName, ordering_named
from dit_sparse.selectors import LowBitEstimate
from dit_sparse.selectors.spend import Scope


@register_method
@dataclass(frozen=True)
class SALE(ComposedConfig):
    """SALE, 4-bit estimate of every logit; a block with one strong element is kept.

    Text and the diagonal blocks are attended exactly. Where the strongest 4-bit estimate of a block weighs
    more than tau of that local part, the block is computed.

    Deviations from the paper, which is about causal language models: the local part is the diagonal and the
    text instead of the first and last tokens; the mean key is taken out before rounding, as quantised
    attention does; without ``density`` one tau serves all heads, where the paper searches one per head
    offline on the output error; with it every head has the tau that meets it. The estimate is computed in
    float32: its quality is that of 4 bits, its cost that of dense ``q k^T``.

    Args:
        tau: weight of the strongest element of a block, in units of the local part's, from which the block
            is kept, > 0. The paper's search starts here and halves.
        density: fraction of blocks to compute, in (0, 1]; overrides ``tau``.
        scope: what has a tau of its own with ``density``: "head", "layer" or "row".
        ordering: "raster", "patches" or "cubes".
    """

    name: ClassVar[str] = "sale"
    citation: ClassVar[str] = "SALE, arXiv 2505.24179"

    tau: float = 0.008
    density: float | None = None
    scope: Scope = "head"
    ordering: OrderingName = "raster"

    def __post_init__(self) -> None:
        if self.ordering == "clusters":
            raise ValueError("ordering='clusters' orders q and k apart and has no diagonal: use 'raster'")

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose the named ordering and the 4-bit estimate."""
        return self.compose(LowBitEstimate(self.tau, self.density, self.scope), ordering_named(self.ordering))
