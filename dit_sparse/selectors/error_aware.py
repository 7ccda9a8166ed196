"""Error-aware routing: the budget goes where the means of a skipped block would be farthest off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dit_sparse import kernels
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.model_budget import ModelScope, check_model_scope, spend_at

Estimate = Literal["centroid", "moments"]
ESTIMATES = {"centroid": kernels.centroid_error, "moments": kernels.moment_error}


@dataclass(frozen=True)
class ErrorAware:
    """Keep the pairs with the largest estimated error of compensation (SVG-EAR, arXiv 2603.08982).

    For use with pooled compensation: a heavy block of like keys is served by its means and need not be
    computed. Fixed blocks cost the same, so error per cost is error.

    Args:
        density: fraction of pairs to keep in (0, 1], forced pairs included.
        scope: "row", "head", "layer" or "model", see :func:`~dit_sparse.selectors.model_budget.spend_at`.
        estimate: "centroid", the paper's (:func:`~dit_sparse.kernels.centroid_error`), or "moments", from the
            variances of the block (:func:`~dit_sparse.kernels.moment_error`).
    """

    density: float = 0.25
    scope: ModelScope = "layer"
    estimate: Estimate = "centroid"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_model_scope(self.scope)
        if self.estimate not in ESTIMATES:
            raise ValueError(f"estimate must be one of {', '.join(ESTIMATES)}, got {self.estimate!r}")

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        context = given.context
        error = ESTIMATES[self.estimate](given.q, given.k, given.v, context.block_size, context.scale)
        return spend_at(given, -error, self.density, self.scope)
