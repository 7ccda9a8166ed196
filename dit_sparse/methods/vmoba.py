"""VMoBA: mixture of block attention over partitions of time, space and both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import CyclingPartition
from dit_sparse.schedule import DenseSteps
from dit_sparse.selectors import CellGate
from dit_sparse.selectors.cells import Selection


@register_method
@dataclass(frozen=True)
class VMoBA(ComposedConfig):
    """VMoBA, mixture of block attention: queries choose cells of a partition by their mean key.

    The partition cycles over the layers: runs of frames, columns of patches over all frames, space-time
    cubes.

    Deviations from the paper: a block of queries chooses together, by its mean, where in the paper every
    query does; blocks that straddle two cells belong to both. Cells are given by their number along the axes
    at the paper's 21x45x80 tokens (frames by 3; 9x10 patches; 7x15x20 cubes), so that they grow with the
    grid, and the number chosen (2 of 7, 10 of 40, 9 of 36, the own cell included) as one share.

    Args:
        selection: "local_topk", the paper's for models that were not trained for it: the own cells and those
            of largest gate; or "global_threshold", the trained variant: the largest gates of a whole head.
        top_k: share of the cells that a row keeps, in (0, 1].
        threshold: share of the sum of a head's scaled gates, in (0, 1], for "global_threshold".
        density: fraction of blocks to compute, in (0, 1]; instead of ``top_k`` or ``threshold``.
        parts: cells along T, H and W of every partition.

    The dense guard is the paper's: the first 25% of the steps.
    """

    name: ClassVar[str] = "vmoba"
    citation: ClassVar[str] = "VMoBA, arXiv 2506.23858"

    selection: Selection = "local_topk"
    top_k: float = 0.25
    threshold: float = 0.25
    density: float | None = None
    parts: tuple[tuple[int, int, int], ...] = ((7, 1, 1), (1, 5, 8), (3, 3, 4))
    dense_steps: DenseSteps | None = 0.25

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose the cycling partition and its gate."""
        return self.compose(
            CellGate(self.selection, self.top_k, self.threshold, self.density), CyclingPartition(self.parts)
        )
