"""GNA: generalised neighbourhood attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import Cubes, Tiles
from dit_sparse.schedule import DenseSteps
from dit_sparse.selectors import Window

_STRIDE = {"hunyuan_video": (16, 8, 8)}


@register_method
@dataclass(frozen=True)
class GNA(ComposedConfig):
    """GNA, generalised neighbourhood attention: every token sees a window around it along T, H and W.

    Neighbours may share a window (stride) and the window may skip tokens (dilation); at the edge of the grid
    it is shifted inwards, so that every token sees as many. Tokens are ordered in space-time cubes, and a
    pair of blocks is computed when some query of one sees some key of the other.

    Deviations from the paper: a block that is computed is computed whole, tokens outside of the window
    included. The windows published for HunyuanVideo, 18x24x24 of 30x48x80
    tokens, are taken as shares of the grid for every family and size; the stride is published for
    HunyuanVideo only, 16x8x8, and 1 elsewhere.

    Args:
        window: along T, H and W, tokens (whole numbers) or shares of the axis (floats).
        density: fraction of blocks to compute, in (0, 1]; scales the window in proportion.
        stride: along T, H and W; None takes the paper's.
        dilation: along T, H and W.
        tile: tokens per tile of the order; None takes cubes that fill a block, 2x8x8 for 128 tokens.

    The dense guard is the paper's: the first 30% of the steps.
    """

    name: ClassVar[str] = "gna"
    citation: ClassVar[str] = "Generalized Neighborhood Attention, arXiv 2504.16922"

    window: tuple[int | float, int | float, int | float] = (0.6, 0.5, 0.3)
    density: float | None = None
    stride: tuple[int, int, int] | None = None
    dilation: tuple[int, int, int] = (1, 1, 1)
    tile: tuple[int, int, int] | None = None
    dense_steps: DenseSteps | None = 0.3

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose space-time cubes and a window."""
        stride = _STRIDE.get(model.family, (1, 1, 1)) if self.stride is None else self.stride
        return self.compose(
            Window(self.window, self.density, stride, self.dilation, "shift"),
            Cubes() if self.tile is None else Tiles(self.tile),
        )
