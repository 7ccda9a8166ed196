"""Orderings: one small file per idea; see :mod:`dit_sparse.orderings.base` for the contract."""

from dit_sparse.context import PlanContext
from dit_sparse.orderings.base import Clusters, Ordering, TokenOrder, with_text
from dit_sparse.orderings.cubes import Cubes
from dit_sparse.orderings.forced import forced_pairs
from dit_sparse.orderings.grid import AXIS_ORDERS, AxisPermutation, Raster, Tiles, axis_order, axis_orders
from dit_sparse.orderings.learnt import ALL, AXES, CarriedAxes, Heads, LearntAxes, axis_errors, spread_rows
from dit_sparse.orderings.named import ORDERINGS, OrderingName, ordering_named
from dit_sparse.orderings.partition import CyclingPartition
from dit_sparse.orderings.semantic import SemanticClusters
from dit_sparse.orderings.shapes import CHOICE, LearntShapes, block_tiles, shape_orders
from dit_sparse.orderings.spatial_temporal import SpatialTemporal

__all__ = [
    "ALL",
    "AXES",
    "AXIS_ORDERS",
    "ORDERINGS",
    "AxisPermutation",
    "CHOICE",
    "CarriedAxes",
    "Clusters",
    "Cubes",
    "CyclingPartition",
    "Heads",
    "LearntAxes",
    "LearntShapes",
    "Ordering",
    "OrderingName",
    "PlanContext",
    "Raster",
    "SemanticClusters",
    "SpatialTemporal",
    "Tiles",
    "TokenOrder",
    "axis_errors",
    "axis_order",
    "axis_orders",
    "block_tiles",
    "forced_pairs",
    "ordering_named",
    "shape_orders",
    "spread_rows",
    "with_text",
]
