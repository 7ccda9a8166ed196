"""Draft-Attention: low-resolution guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.corrections import correction_named
from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import MethodConfig, ModelInfo, register_method
from dit_sparse.orderings import Tiles
from dit_sparse.schedule import DenseLayers, DenseSteps, Schedule
from dit_sparse.selectors import TopK
from dit_sparse.selectors.scores import Score


@register_method
@dataclass(frozen=True)
class Draft(MethodConfig):
    """Draft-Attention, low-resolution guidance.

    Each frame is cut into patches that become blocks; the attention of the block means (the draft) tells
    which blocks of a head's whole map are computed.

    Deviations from the paper: grids that the patch does not divide have smaller edge patches, and fixed-size
    blocks then straddle neighbours; block means are always those of the tokens a block really holds. A row
    that would end up empty keeps its own diagonal block.

    Args:
        density: fraction of blocks to compute, in (0, 1]; the paper's 75% sparsity.
        patch: patch height and width in tokens; their product should be the block size (8x16 = 128). None
            takes 8x16 for 128-token blocks, 8x8 for 64, 8x4 for 32.
        score: "pooled" as in the paper, or "mean_key": every query against the mean keys.
        correction: "none" as in the paper, or "pooled": skipped blocks enter through their means.
        dense_steps: the paper's first 25% of the steps.
        dense_layers: layers left dense.
        refresh_interval: steps that share a plan; 1 as in the paper.
        min_tokens: shorter sequences stay dense.
        block_size: tokens per block, or "auto".
    """

    name: ClassVar[str] = "draft"
    citation: ClassVar[str] = "DraftAttention, arXiv 2505.14708"

    density: float = 0.25
    patch: tuple[int, int] | None = None
    score: Score = "pooled"
    correction: str = "none"
    dense_steps: DenseSteps = 0.25
    dense_layers: DenseLayers | float = ()
    refresh_interval: int = 1
    min_tokens: int = 1024
    block_size: int | str = "auto"

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose patch tiles and a top-k over the whole map of each head."""
        return SparseMethod(
            name=self.name,
            ordering=Tiles(None if self.patch is None else (1, *self.patch)),
            selector=TopK(self.density, "head", self.score),
            correction=correction_named(self.correction),
            schedule=Schedule(self.dense_steps, self.dense_layers, self.refresh_interval, self.min_tokens),
            block_size=self.block_size,
        )
