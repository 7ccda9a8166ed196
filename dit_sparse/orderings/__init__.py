"""Orderings: one small file per idea; see :mod:`dit_sparse.orderings.base` for the contract."""

from dit_sparse.context import PlanContext
from dit_sparse.orderings.base import Clusters, Ordering, TokenOrder
from dit_sparse.orderings.grid import AXIS_ORDERS, AxisPermutation, Raster, Tiles
from dit_sparse.orderings.semantic import SemanticClusters

__all__ = [
    "AXIS_ORDERS",
    "AxisPermutation",
    "Clusters",
    "Ordering",
    "PlanContext",
    "Raster",
    "SemanticClusters",
    "Tiles",
    "TokenOrder",
]
