"""CLEAR: circular windows for image transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import Tiles
from dit_sparse.selectors import Circle


@register_method
@dataclass(frozen=True)
class CLEAR(ComposedConfig):
    """CLEAR, a circular window: a token sees those of the frame less than a radius away, and the text.

    Needs distillation for quality: the paper finetunes the attention layers for 10,000 iterations. Without it
    this serves as a baseline.

    Deviations from the paper, which is about images: in a video the circle is the same in every frame, a
    cylinder along time, unless ``time_scale`` puts time into the distance. A pair of blocks is computed whole
    when some query of one sees some key of the other. The softmax temperature for resolutions beyond the
    trained one is not applied.

    Args:
        radius: in tokens; the paper has 8, 16 and 32 for 64x64 tokens. Smaller grids want a ``density``.
        density: fraction of blocks to compute, in (0, 1]; sets the radius.
        time_scale: tokens that one frame counts in the distance; 0 ignores time.
    """

    name: ClassVar[str] = "clear"
    citation: ClassVar[str] = "CLEAR, ICML 2025, arXiv 2412.16112"

    radius: float = 16.0
    density: float | None = None
    time_scale: float = 0.0

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose frame patches and a circle."""
        return self.compose(Circle(self.radius, self.density, self.time_scale), Tiles())
