"""Radial attention: the band narrows with distance in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.schedule import DenseLayers, DenseSteps
from dit_sparse.selectors import RadialBand

_DECAY = {"wan": 0.2}
_DENSE_LAYERS = {"wan": (0,)}


@register_method
@dataclass(frozen=True)
class Radial(ComposedConfig):
    """Radial attention: a static band in raster order whose width halves as the distance in time doubles.

    The first frame is kept by all queries.

    Deviations from the paper: a pair of blocks is computed when some query and some key of it lie in the
    band; the public code asks for most of the block, and for Wan halves the band of adjacent frames too.

    Args:
        density: fraction of blocks to compute, in (0, 1]; scales all bands by one factor.
        decay: factor on the bands of frames at least two apart; None takes the public code's: Wan 0.2, others
            1.
        sink: keep the first frame; with a ``density`` it narrows with the own frame's band.

    The dense guard is the paper's: 12 of 50 steps, and the first layer for Wan.
    """

    name: ClassVar[str] = "radial"
    citation: ClassVar[str] = "Radial Attention, arXiv 2506.19852"

    density: float | None = None
    decay: float | None = None
    sink: bool = True
    dense_steps: DenseSteps | None = 0.24
    dense_layers: DenseLayers | float | None = None

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose raster order and the radial band."""
        decay = _DECAY.get(model.family, 1.0) if self.decay is None else self.decay
        return self.compose(
            RadialBand(self.density, decay, self.sink), dense_layers=_DENSE_LAYERS.get(model.family, ())
        )
