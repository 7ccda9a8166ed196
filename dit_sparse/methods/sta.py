"""STA: sliding tile attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import Tiles
from dit_sparse.schedule import DenseSteps
from dit_sparse.selectors import Window


@register_method
@dataclass(frozen=True)
class STA(ComposedConfig):
    """STA, sliding tile attention: every space-time tile sees the tiles of a window around it, whole.

    Neighbourhood attention whose stride is the tile and whose window is a multiple of it, so that on grids
    that the tile divides nothing is computed in part.

    Deviations from the paper: one window for all heads and steps, where the paper searches one per head.
    Grids that the tile does not divide are not padded; their edge tiles are smaller, and the blocks there
    straddle tiles. Grids smaller than window times tile are dense unless a ``density`` is given.

    Args:
        tile: tokens along T, H and W; in all a multiple of the block size. The paper's is 6x8x8.
        window: in tiles along T, H and W, odd; the paper's 3x3x3 is 9% of HunyuanVideo at 117x768x1280.
        density: fraction of blocks to compute, in (0, 1]; scales the window in proportion.

    The dense guard is the paper's for models that were not finetuned: 15 of 50 steps.
    """

    name: ClassVar[str] = "sta"
    citation: ClassVar[str] = "Sliding Tile Attention, arXiv 2502.04507"

    tile: tuple[int, int, int] = (6, 8, 8)
    window: tuple[int, int, int] = (3, 3, 3)
    density: float | None = None
    dense_steps: DenseSteps | None = 0.3

    def __post_init__(self) -> None:
        if len(self.window) != 3 or any(not isinstance(n, int) or n < 1 or n % 2 == 0 for n in self.window):
            raise ValueError(
                f"window must be three odd numbers of tiles along T, H and W, got {self.window}: an even one "
                "has no tile in its middle"
            )

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose tiles and a window that moves tile by tile."""
        tiles = Tiles(self.tile)
        t, h, w = (tile * count for tile, count in zip(self.tile, self.window, strict=True))
        return self.compose(Window((t, h, w), self.density, self.tile, border="shift"), tiles)
