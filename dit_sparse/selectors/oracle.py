"""The best blocks, known from dense attention: not for use, but the limit of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dit_sparse import kernels
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.spend import Scope, check_scope, spend

Measure = Literal["mass", "error", "compensated_error"]
MEASURES = ("mass", "error", "compensated_error")


@dataclass(frozen=True)
class Oracle:
    """Keep the pairs that matter most by dense attention itself, which costs more than it saves.

    What estimates lose shows in the distance from here. It is the limit of choosing pairs one by one: errors
    of several skipped pairs of a row may add up or cancel, which no ranking sees.

    Args:
        density: fraction of pairs to keep in (0, 1], forced pairs included.
        scope: "row", "head" or "layer", see :func:`~dit_sparse.selectors.spend.spend`.
        by: "mass", the share of the softmax; "error", the error of the output when the pair is skipped;
            "compensated_error", the same when the pair's means stand in for it.
    """

    density: float = 0.25
    scope: Scope = "layer"
    by: Measure = "mass"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scope(self.scope)
        if self.by not in MEASURES:
            raise ValueError(f"by must be one of {', '.join(MEASURES)}, got {self.by!r}")

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        q, k, v, context = given.q, given.k, given.v, given.context
        out, lse = kernels.dense_attention(q, k, v, scale=context.scale)
        if self.by == "mass":
            value = kernels.block_mass(q, k, lse, context.block_size, context.scale)
        else:
            compensated = self.by == "compensated_error"
            value = kernels.skip_error(
                q, k, v, out, lse, context.block_size, context.scale, compensated=compensated
            )
        return spend(-value, given.forced, self.density, self.scope)
