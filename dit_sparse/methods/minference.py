"""MInference: vertical-slash and pooled block-sparse attention, brought to diffusion transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.selectors import Selector, TopK, VerticalSlash


@register_method
@dataclass(frozen=True)
class MInference(ComposedConfig):
    """MInference, columns and diagonals of the attention map, or blocks by pooled scores, in raster order.

    Vertical-slash: sampled query rows tell which key blocks are attended to by all (vertical) and at which
    distances (slash). Block-sparse: every row keeps the key blocks of largest pooled score.

    Deviations from the paper, which is about causal language models: the rows are spread over the grid, not
    the last 64 of the sequence; columns and diagonals are those of the block map and share one budget, where
    the paper searches a number of each per head; one pattern for all heads.

    Args:
        pattern: "vertical_slash" or "block_sparse".
        density: fraction of blocks to compute, in (0, 1].
        rows: query rows to sample for "vertical_slash".
    """

    name: ClassVar[str] = "minference"
    citation: ClassVar[str] = "MInference, arXiv 2407.02490"

    pattern: Literal["vertical_slash", "block_sparse"] = "vertical_slash"
    rows: int = 64

    def __post_init__(self) -> None:
        if self.pattern not in ("vertical_slash", "block_sparse"):
            raise ValueError(f"pattern must be 'vertical_slash' or 'block_sparse', got {self.pattern!r}")

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose raster order and the pattern."""
        selector: Selector = TopK(self.target_density, "row")
        if self.pattern == "vertical_slash":
            selector = VerticalSlash(self.target_density, self.rows)
        return self.compose(selector)
