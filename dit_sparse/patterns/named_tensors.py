"""The table as tensors by name, the way a file holds it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dit_sparse.patterns.errors import ProfileError, quoted
from dit_sparse.patterns.table import PatternTable

FIELDS = {
    "kind": torch.uint8,
    "axes": torch.uint8,
    "density": torch.float32,
    "constant": torch.float32,
    "shape": torch.float32,
    "precision": torch.uint8,
    "mask_group": torch.int16,
}
"""Every tensor of a table but the masks, with its type."""

_MASK = re.compile(r"mask\.(0|[1-9][0-9]{0,4})\.(0|[1-9][0-9]{0,4})")


def to_tensors(table: PatternTable) -> dict[str, Tensor]:
    """Tensors by name; the mask of step group g and layer l is ``mask.g.l``."""
    fields = {name: getattr(table, name) for name in FIELDS}
    return {**fields, **{mask_name(*key): mask for key, mask in table.masks.items()}}


def from_tensors(tensors: Mapping[str, Tensor]) -> PatternTable:
    """The table, unchecked but for the names.

    Raises:
        ProfileError: where a tensor is missing, or one has a name that no table knows.
    """
    if missing := FIELDS.keys() - tensors.keys():
        raise ProfileError(f"it has no tensors {', '.join(sorted(missing))}: it is damaged, make it again")
    masks = {}
    for name in sorted(tensors.keys() - FIELDS.keys()):
        if not (found := _MASK.fullmatch(name)):
            raise ProfileError(
                f"it holds an unknown tensor {quoted(name)}: known are {', '.join(FIELDS)} and "
                "mask.GROUP.LAYER"
            )
        masks[int(found[1]), int(found[2])] = tensors[name]
    return PatternTable(**{name: tensors[name] for name in FIELDS}, masks=masks)


def mask_name(group: int, layer: int) -> str:
    """Name of the tensor of masks of a step group and layer."""
    return f"mask.{group}.{layer}"
