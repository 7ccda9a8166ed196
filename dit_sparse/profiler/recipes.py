"""The recipes by name."""

from __future__ import annotations

from dit_sparse.profiler import (  # noqa: F401  (they register themselves)
    recipe_any,
    recipe_layers,
    recipe_masks,
    recipe_modes,
    recipe_windows,
)
from dit_sparse.profiler.recipe import Recipe, registered


def recipes() -> dict[str, Recipe]:
    """All recipes by name, sorted.

    >>> [name for name in recipes() if recipes()[name].source]
    ['adaspa', 'moa', 'paro', 'sparse-vdit', 'svoo']
    """
    return registered()


def recipe_named(name: str) -> Recipe:
    """A recipe.

    Raises:
        ValueError: if there is none of this name; the message lists those that exist.
    """
    known = registered()
    if name not in known:
        raise ValueError(f"unknown recipe {name!r}: use one of {', '.join(known)}")
    return known[name]
