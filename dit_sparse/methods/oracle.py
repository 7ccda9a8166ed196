"""Oracle: the best blocks by dense attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import OrderingName, ordering_named
from dit_sparse.schedule import DenseSteps
from dit_sparse.selectors import Oracle
from dit_sparse.selectors.oracle import Measure
from dit_sparse.selectors.spend import Scope


@register_method
@dataclass(frozen=True)
class OracleMethod(ComposedConfig):
    """Oracle, the best blocks by dense attention: not for use, the upper limit of every comparison.

    Dense attention is computed at every call to find the blocks, so this is slower than dense. What a method
    with the same ordering and correction lacks to it is lost in the choice of blocks.

    Args:
        scope: "layer" spends one budget over all heads, "head" and "row" equally.
        by: "mass", the share of the softmax; "error" and "compensated_error", the error of the output when
            the block is skipped, or replaced by its means as ``correction="pooled"`` does.
        ordering: "raster", "patches", "cubes" or "clusters", see ``dit_sparse.orderings.ORDERINGS``.
    """

    name: ClassVar[str] = "oracle"
    citation: ClassVar[str] = "no paper: the limit of choosing blocks, from dense attention"

    scope: Scope = "layer"
    by: Measure = "mass"
    ordering: OrderingName = "raster"
    dense_steps: DenseSteps | None = 0.2

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose the named ordering and the oracle."""
        return self.compose(Oracle(self.target_density, self.scope, self.by), ordering_named(self.ordering))
