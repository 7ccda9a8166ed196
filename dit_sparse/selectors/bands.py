"""The spatial or the temporal band of every head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dit_sparse.orderings.spatial_temporal import HEAD_AXES, band_distance, keeps_first_frame
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.geometry import Grid, block_distance
from dit_sparse.selectors.spend import spend


@dataclass(frozen=True)
class _Band:
    """Keys near along an axis order."""

    axes: str
    sink: bool

    def cost(self, q: Tensor, k: Tensor, grid: Grid) -> Tensor:
        """Distance in tokens, ``[n, m]``."""
        return band_distance(q, k, grid, self.axes, self.sink)


@dataclass(frozen=True)
class HeadBands:
    """A band along the axis order that every head chose: the frame and its neighbours for spatial heads, the
    location and its neighbours over all frames for temporal ones (Sparse VideoGen, arXiv 2502.01776).

    Needs the ordering :class:`~dit_sparse.orderings.SpatialTemporal`.

    Args:
        density: fraction of pairs to keep in (0, 1], forced pairs and the first frame included: it sets the
            width.
        first_frame: all queries keep the first frame; give the ordering the same.
    """

    density: float = 0.25
    first_frame: bool = False

    def __post_init__(self) -> None:
        check_density(self.density)

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``.

        Raises:
            ValueError: with an ordering that does not call heads spatial or temporal.
        """
        if given.order.choice is None or len(given.order.candidates) != len(HEAD_AXES):
            raise ValueError("HeadBands needs heads called spatial or temporal: use SpatialTemporal()")
        sink = keeps_first_frame(given.context.layout.grid, self.density, self.first_frame)
        near = block_distance(given, *(_Band(axes, sink) for axes in HEAD_AXES))
        return spend(near.rank, given.forced, self.density, "head")
