"""SpargeAttention: pooled selection that guards blocks whose tokens differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.selectors import SimilarityGuarded


@register_method
@dataclass(frozen=True)
class Sparge(ComposedConfig):
    """SpargeAttention, top-p over pooled scores; blocks whose tokens are not alike are computed whole.

    Deviations from the paper: raster order; neither the second, warp-level skip inside of the kernel nor int8
    arithmetic (see ``precision``); square blocks instead of 128x64; thresholds are common to all
    heads, where the paper tunes them per head. With a ``density`` every head has the threshold that meets
    it, and the guard takes at most half of it.

    Args:
        top_p: share of the softmax over pooled scores to keep per row, in (0, 1].
        similarity: mean cosine over the pairs of a block's tokens, in [-1, 1], below which a block is
            computed whole.
        density: fraction of blocks to compute, in (0, 1]; picks the thresholds instead of ``top_p``.
    """

    name: ClassVar[str] = "sparge"
    citation: ClassVar[str] = "SpargeAttention, arXiv 2502.18137"

    top_p: float = 0.98
    similarity: float = 0.6
    density: float | None = None

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose raster order and guarded top-p."""
        return self.compose(SimilarityGuarded(self.top_p, self.similarity, self.density))
