"""Orderings by name, for the methods that leave the choice to their user."""

from __future__ import annotations

from typing import Literal

from dit_sparse.orderings.base import Ordering
from dit_sparse.orderings.cubes import Cubes
from dit_sparse.orderings.grid import Raster, Tiles
from dit_sparse.orderings.semantic import SemanticClusters

OrderingName = Literal["raster", "patches", "cubes", "clusters"]
ORDERINGS: dict[str, Ordering] = {
    "raster": Raster(),
    "patches": Tiles(),
    "cubes": Cubes(),
    "clusters": SemanticClusters(),
}


def ordering_named(name: str) -> Ordering:
    """The ordering of this name with its defaults.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ORDERINGS:
        raise ValueError(f"unknown ordering {name!r}: use one of {', '.join(ORDERINGS)}")
    return ORDERINGS[name]
