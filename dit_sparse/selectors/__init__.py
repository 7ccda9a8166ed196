"""Selectors: one small file per idea; see :mod:`dit_sparse.selectors.base` for the contract."""

from dit_sparse.selectors.bands import HeadBands
from dit_sparse.selectors.base import SelectionInput, Selector, forced_pairs, keep_smallest
from dit_sparse.selectors.cells import CellGate
from dit_sparse.selectors.circle import Circle
from dit_sparse.selectors.clusters import ClusterErrorAware, ClusterTopP
from dit_sparse.selectors.dynamic import TopK, TopP
from dit_sparse.selectors.error_aware import ErrorAware
from dit_sparse.selectors.fixed import Static, Window
from dit_sparse.selectors.frame_band import FrameBand
from dit_sparse.selectors.low_bit import LowBitEstimate
from dit_sparse.selectors.modes import HeadModes
from dit_sparse.selectors.observed import ObservedMass
from dit_sparse.selectors.observed_error import ObservedError
from dit_sparse.selectors.observed_heads import ObservedHeads
from dit_sparse.selectors.oracle import Oracle
from dit_sparse.selectors.radial import RadialBand
from dit_sparse.selectors.scores import estimate_mass
from dit_sparse.selectors.similarity import SimilarityGuarded
from dit_sparse.selectors.vertical_slash import VerticalSlash

__all__ = [
    "CellGate",
    "Circle",
    "ClusterErrorAware",
    "ClusterTopP",
    "ErrorAware",
    "FrameBand",
    "HeadBands",
    "HeadModes",
    "LowBitEstimate",
    "ObservedError",
    "ObservedHeads",
    "ObservedMass",
    "Oracle",
    "RadialBand",
    "SelectionInput",
    "Selector",
    "SimilarityGuarded",
    "Static",
    "TopK",
    "TopP",
    "VerticalSlash",
    "Window",
    "estimate_mass",
    "forced_pairs",
    "keep_smallest",
]
