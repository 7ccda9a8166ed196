"""PAROAttention: an axis order per head makes patterns blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import LearntAxes
from dit_sparse.selectors import ObservedMass


@register_method
@dataclass(frozen=True)
class PARO(ComposedConfig):
    """PAROAttention, an axis order per head that turns its pattern into blocks, and static block masks.

    Every head flattens (T, H, W) in the one of six axis orders that serves it best and computes the blocks
    that were heaviest in it when attention was observed.

    Deviations from the paper, which calibrates offline: order and mask are learnt at the last dense step
    and once more at ``recalibrate``; the paper has a mask for every step of the first half. Each time costs a
    dense step and a pass over the logits for the mask, and for the orders six passes and six sparse
    attentions of up to 64 query blocks. The order is the one of least output error at the target density
    rather than of the paper's weighted scores, whose weight is unpublished. The dense guard is ours, because
    masks of the very first step would not serve the others; the paper has none. Text is not permuted and
    always kept, as there.

    Args:
        density: fraction of blocks to compute, in (0, 1]; the paper reports 0.5, 0.3 and 0.2.
        recalibrate: fraction of the steps at which order and mask are learnt again, in [0, 1]; None for
            never.
    """

    name: ClassVar[str] = "paro"
    citation: ClassVar[str] = "PAROAttention, arXiv 2506.16054"

    density: float | None = 0.3
    recalibrate: float | None = 0.5

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose learnt axis orders and observed block mass."""
        return self.compose(
            ObservedMass(self.target_density, "head", again=self.recalibrate),
            LearntAxes(self.target_density, self.recalibrate),
        )
