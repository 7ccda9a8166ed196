"""What every head does, by step group and layer: the table that a profile holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from dit_sparse.kernels import PRECISIONS

KINDS = ("dense", "skip", "mask", "window", "radial", "dynamic", "observed")
"""How a head attends. dense: all pairs. skip: only the rows of text, all others are zero. mask: a stored
block mask. window: nearest pairs on the grid, ``shape`` gives the proportions. radial: an energy-decay rule.
dynamic: the heaviest pairs of every call, by mean keys. observed: the pairs whose means served worst when
this run's dense attention was last observed, in the shape of block that served best then (mosaic)."""
DENSE, SKIP, MASK, WINDOW, RADIAL, DYNAMIC, OBSERVED = range(len(KINDS))


@dataclass(frozen=True)
class PatternTable:
    """Choices per (step group, layer, head). Tensors lie on the CPU and are not written to.

    A head of density d on the N tokens of the profile's grid has ``d - constant / N + constant / M`` on M
    tokens: its span in tokens is alpha + beta M with alpha = ``constant`` (MoA, arXiv 2406.14909).

    Args:
        kind: uint8 ``[G, L, H]``, index into :data:`KINDS`.
        axes: uint8 ``[G, L, H]``, index into :data:`~dit_sparse.orderings.AXIS_ORDERS`: the order in which
            the head's tokens sit; 0 for observed heads, which learn theirs in the run.
        density: float32 ``[G, L, H]`` in (0, 1], fraction of block pairs computed, forced ones included; the
            observed heads of a layer share the sum of theirs.
        constant: float32 ``[G, L, H]`` >= 0, tokens of the span that do not grow with the sequence.
        shape: float32 ``[G, L, H, 3]``; for windows the widths along T, H and W as shares of the axis in
            (0, 1], else 0.
        precision: uint8 ``[G, L]``, index into :data:`~dit_sparse.kernels.PRECISIONS`; the heads of a layer
            run in one launch.
        mask_group: int16 ``[G, L]``, the step group under which the masks of this layer are stored (groups
            may share them), -1 where no head of the layer has one.
        masks: (step group, layer) -> uint8 ``[heads of kind mask, nQ, ceil(nK / 8)]``, bits of the kept
            pairs in the head's own order, least significant first, heads ascending.
    """

    kind: Tensor
    axes: Tensor
    density: Tensor
    constant: Tensor
    shape: Tensor
    precision: Tensor
    mask_group: Tensor
    masks: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(G, L, H)."""
        groups, layers, heads = self.kind.shape
        return groups, layers, heads

    @cached_property
    def precisions(self) -> tuple[tuple[str, ...], ...]:
        """Names of the precisions, by step group and layer."""
        return tuple(tuple(PRECISIONS[index] for index in layers) for layers in self.precision.tolist())
