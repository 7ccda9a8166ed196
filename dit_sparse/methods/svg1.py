"""SVG: spatial and temporal heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import SpatialTemporal
from dit_sparse.schedule import DenseLayers, DenseSteps
from dit_sparse.selectors import HeadBands

_DENSE_STEPS = {"hunyuan_video": 0.1}
_FIRST_FRAME = {"wan": True}


@register_method
@dataclass(frozen=True)
class SVG1(ComposedConfig):
    """SVG, Sparse VideoGen: every head is spatial or temporal, and attends within its band.

    At every step sampled query rows tell per head whether its attention is nearer to a band in raster order
    (the frame and its neighbours) or to one in the order that puts all frames of a location side by side.
    Temporal heads are permuted into the latter, so that both bands are diagonals of blocks.

    Deviations from the paper: the error compared is that of the attention weights, not of the output; the
    rows are spread over the grid instead of drawn at random; the compared bands have the density that is then
    computed, not a fixed width.

    Args:
        density: fraction of blocks to compute, in (0, 1].
        rows: query rows to sample.
        first_frame: all queries keep the first frame; None as the public code does: Wan yes, others no. It is
            left out where it would take more than half of the budget.

    The dense guard is that of the public scripts: the first 30% of the steps, 10% for HunyuanVideo, and 3% of
    the layers.
    """

    name: ClassVar[str] = "svg1"
    citation: ClassVar[str] = "Sparse VideoGen, arXiv 2502.01776"

    rows: int = 64
    first_frame: bool | None = None
    dense_steps: DenseSteps | None = None
    dense_layers: DenseLayers | float | None = 0.03

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose the orders of spatial and temporal heads and their bands."""
        first = _FIRST_FRAME.get(model.family, False) if self.first_frame is None else self.first_frame
        return self.compose(
            HeadBands(self.target_density, first),
            SpatialTemporal(self.target_density, self.rows, first),
            dense_steps=_DENSE_STEPS.get(model.family, 0.3),
        )
