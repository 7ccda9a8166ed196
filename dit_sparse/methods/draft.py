"""Draft-Attention: low-resolution guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import Tiles
from dit_sparse.schedule import DenseSteps
from dit_sparse.selectors import TopK
from dit_sparse.selectors.model_budget import ModelScope
from dit_sparse.selectors.scores import Score


@register_method
@dataclass(frozen=True)
class Draft(ComposedConfig):
    """Draft-Attention, low-resolution guidance.

    Each frame is cut into patches that become blocks; the attention of the block means (the draft) tells
    which blocks of a head's whole map are computed.

    Deviations from the paper: grids that the patch does not divide have smaller edge patches, and fixed-size
    blocks then straddle neighbours; block means are always those of the tokens a block really holds. A row
    that would end up empty keeps its own diagonal block.

    Args:
        patch: patch height and width in tokens; their product should be the block size (8x16 = 128). None
            takes 8x16 for 128-token blocks, 8x8 for 64, 8x4 for 32.
        score: "pooled" as in the paper, or "mean_key": every query against the mean keys.
        scope: "head", one budget per head as in the paper; "row", "layer" or "model".

    The dense guard is the paper's: the first 25% of the steps.
    """

    name: ClassVar[str] = "draft"
    citation: ClassVar[str] = "DraftAttention, arXiv 2505.14708"

    patch: tuple[int, int] | None = None
    score: Score = "pooled"
    scope: ModelScope = "head"
    dense_steps: DenseSteps | None = 0.25

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose patch tiles and a top-k over the whole map of each head."""
        return self.compose(
            TopK(self.target_density, self.scope, self.score),
            Tiles(None if self.patch is None else (1, *self.patch)),
        )
