"""Blocks whose strongest element, estimated in 4 bits, counts beside the row's own neighbourhood."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dit_sparse import kernels
from dit_sparse.layout import BlockMap
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.spend import Scope, check_scope, spend


@dataclass(frozen=True)
class LowBitEstimate:
    """Keep a block where some element weighs at least tau of the row's local part (SALE, arXiv 2505.24179).

    The local part, text and the diagonal, is attended exactly; it gives every row the scale its softmax has
    at least. All elements are estimated from 4-bit queries and keys
    (:func:`~dit_sparse.kernels.low_bit_margin`).

    Needs an ordering that q and k share: else no block is local.

    Args:
        tau: threshold > 0; ignored when ``density`` is given.
        density: fraction of pairs to keep in (0, 1], forced pairs included: takes the tau that meets it.
        scope: what has a tau of its own with ``density``: "row", "head" or "layer".
    """

    tau: float = 0.008
    density: float | None = None
    scope: Scope = "head"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scope(self.scope)
        if not self.tau > 0.0:
            raise ValueError(f"tau must be > 0, got {self.tau}")

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``.

        Raises:
            ValueError: with an ordering that orders q and k apart.
        """
        if given.order.q is not given.order.kv:
            raise ValueError("LowBitEstimate needs an ordering that q and k share: use Raster() or Tiles()")
        block, scale, tokens = given.context.block_size, given.context.scale, given.q.shape[1]
        local = BlockMap.from_mask(given.forced.expand(given.shape), tokens, tokens, block)
        _, lse = kernels.block_sparse_attention(
            given.q, given.k, given.v, local, scale=scale, return_lse=True
        )
        margin = kernels.low_bit_margin(given.q, given.k, lse, block, scale)
        if self.density is None:
            return (margin >= math.log(self.tau)) | given.forced
        return spend(-margin, given.forced, self.density, self.scope)
