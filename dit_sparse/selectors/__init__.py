"""Selectors: one small file per idea; see :mod:`dit_sparse.selectors.base` for the contract."""

from dit_sparse.selectors.base import SelectionInput, Selector, forced_pairs, keep_smallest
from dit_sparse.selectors.dynamic import TopK, TopP
from dit_sparse.selectors.fixed import Static, Window
from dit_sparse.selectors.scores import estimate_mass

__all__ = [
    "SelectionInput",
    "Selector",
    "Static",
    "TopK",
    "TopP",
    "Window",
    "estimate_mass",
    "forced_pairs",
    "keep_smallest",
]
