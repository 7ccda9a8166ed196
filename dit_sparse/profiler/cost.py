"""What a head costs: the density alone, or time by a measured table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dit_sparse.patterns import DYNAMIC, GridFacts, ModelFacts
from dit_sparse.profiler.cost_table import CostTable

Floats = NDArray[np.float64]


class Cost(Protocol):
    """Cost of one sparse step; that of all its layers is the sum of those of their heads, and of reordering
    those that need it."""

    def heads(self, kind: NDArray, density: Floats, precision: str = "native") -> Floats:
        """Of one head each.

        Args:
            kind: indices into :data:`~dit_sparse.patterns.KINDS`, any shape.
            density: fractions of pairs, like ``kind``.
            precision: arithmetic of the layer.
        """
        ...

    def reorder(self) -> float:
        """Of a layer some of whose heads have another order than the model's."""
        ...

    def correction(self) -> float:
        """Of a sparse layer of a profile whose heads learn, which carries what is lacking."""
        ...

    def dense(self) -> float:
        """Of a step that is dense throughout."""
        ...

    def observed(self) -> float | None:
        """Of a step at which heads learn again, which is dense; None where only sparse steps are counted."""
        ...


@dataclass(frozen=True)
class DensityCost:
    """The density alone: the cost of a step is the mean over its heads."""

    layers: int
    num_heads: int

    def heads(self, kind: NDArray, density: Floats, precision: str = "native") -> Floats:
        """Share of the step's mean."""
        return density / (self.layers * self.num_heads)

    def reorder(self) -> float:
        """Nothing."""
        return 0.0

    def correction(self) -> float:
        """Nothing."""
        return 0.0

    def dense(self) -> float:
        """1."""
        return 1.0

    def observed(self) -> None:
        """A density is one of the sparse steps."""


def density_cost(model: ModelFacts) -> DensityCost:
    """Cost is the density alone, whatever the device."""
    return DensityCost(model.layers, model.heads)


@dataclass(frozen=True)
class TimeCost:
    """Milliseconds by a measured table, for one sample.

    The heads of a layer run in one launch, whose time is affine in the pairs computed (to the table's
    precision), so a head's part is the time of a layer of its density by the number of heads. What is kept
    for a step group (masks, and windows and bands once they are made), and what observed heads learnt, is
    unpacked at every call; dynamic heads are scored instead. The block map is made of all heads.
    """

    table: CostTable
    tokens: int
    layers: int
    num_heads: int

    def heads(self, kind: NDArray, density: Floats, precision: str = "native") -> Floats:
        """ms."""
        per_head = self.table.sparse_ms(self.tokens, density, precision, heads=1)
        plan = {what: self.table.planning_ms(what, self.tokens, 1) for what in ("unpack", "score", "map")}
        return per_head + plan["map"] + np.where(kind == DYNAMIC, plan["score"], plan["unpack"])

    def reorder(self) -> float:
        """ms of gathering q, k and v and scattering the output."""
        return self.table.planning_ms("reorder", self.tokens, self.num_heads)

    def correction(self) -> float:
        """ms of the means of what is skipped and of the carried residual."""
        return self.table.planning_ms("correct", self.tokens, self.num_heads)

    def dense(self) -> float:
        """ms by the fastest dense kernel."""
        return self.layers * self.table.dense_ms(self.tokens, self.num_heads)

    def observed(self) -> float:
        """ms of the dense attention alone: trying shapes and ranking pairs, in it and in the last step of the
        guard, is not in the table."""
        return self.dense()


def time_cost(table: CostTable, model: ModelFacts, grid: GridFacts) -> TimeCost:
    """A table's times for a model and a grid.

    Raises:
        ValueError: if the table was measured for another head size or other blocks.
    """
    if table.head_dim != model.head_dim:
        raise ValueError(
            f"the cost table of {table.label} is for head size {table.head_dim}, the model has "
            f"{model.head_dim}: measure one with measure_cost"
        )
    if table.block_size != grid.block_size:
        raise ValueError(
            f"the cost table of {table.label} is for blocks of {table.block_size}, the recording has "
            f"{grid.block_size}: measure one with measure_cost"
        )
    tokens = grid.frames * grid.height * grid.width + grid.text_tokens
    return TimeCost(table, tokens, model.layers, model.heads)
