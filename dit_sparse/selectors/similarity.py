"""Pooled selection that does not trust the means of blocks whose tokens differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.spend import Scope, check_scope, spend

GUARD_SHARE = 0.5
"""With a density, at most this part of it goes to the guard."""


@dataclass(frozen=True)
class SimilarityGuarded:
    """Top-p over pooled scores, and all pairs of blocks that are not self-similar (SpargeAttention, arXiv
    2502.18137).

    A block is self-similar when the mean cosine over all pairs of its tokens reaches a threshold; keys are
    centred first. Rows of
    query blocks and columns of key blocks that are not are computed whole, because their means say little;
    such key blocks take no part in the softmax of the others. Of the others a row keeps the heaviest until
    their share of that softmax reaches p.

    With ``density`` p is the one, common to the rows of a head, that meets it. The threshold is lowered until
    the guard takes no more than half of the budget: where no block is self-similar it would take all.

    Args:
        p: share of the softmax over pooled scores to keep, in (0, 1]; ignored when ``density`` is given.
        similarity: threshold in [-1, 1]; below it a block is guarded.
        density: fraction of pairs to keep in (0, 1], forced pairs included.
        scope: "head" (one budget and one p per head) or "layer" (one for all heads).
    """

    p: float = 0.98
    similarity: float = 0.6
    density: float | None = None
    scope: Scope = "head"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scope(self.scope)
        if not 0.0 < self.p <= 1.0:
            raise ValueError(f"p must be in (0, 1], got {self.p}")
        if not -1.0 <= self.similarity <= 1.0:
            raise ValueError(f"similarity is a cosine in [-1, 1], got {self.similarity}")

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        if self.density == 1.0 or (self.p == 1.0 and self.density is None):
            return torch.ones(given.shape, dtype=torch.bool, device=given.q.device)
        block, scale = given.context.block_size, given.context.scale
        q_like = kernels.block_similarity(given.q, block[0])[..., :, None]
        k_like = kernels.block_similarity(given.k, block[1], centred=True)[..., None, :]
        limit = self._limit(torch.minimum(q_like, k_like))
        k_unlike = k_like < limit
        guarded = (q_like < limit) | k_unlike
        scores = kernels.pooled_scores(given.q, given.k, block, scale).masked_fill(k_unlike, -torch.inf)
        # Rows whose key blocks are all guarded have no softmax.
        mass = scores.softmax(dim=-1).nan_to_num(nan=0.0)
        ranked, columns = mass.sort(dim=-1, descending=True, stable=True)
        before = torch.zeros_like(mass).scatter_(-1, columns, ranked.cumsum(dim=-1) - ranked)
        if self.density is None:
            return ((before < self.p) & (mass > 0)) | guarded | given.forced
        return spend(before.masked_fill(guarded, -1.0), given.forced, self.density, self.scope)

    def _limit(self, likeness: Tensor) -> Tensor:
        """Similarity below which a block is guarded, ``[B, H or 1, 1, 1]``, from that of all pairs."""
        if self.density is None:
            return torch.full((1, 1, 1, 1), self.similarity, device=likeness.device)
        dims = 3 if self.scope == "layer" else 2
        pairs = likeness.flatten(-dims)
        share = max(1, round(GUARD_SHARE * self.density * pairs.shape[-1]))
        fits = pairs.kthvalue(share, dim=-1).values.clamp(max=self.similarity)
        return fits.view(*fits.shape, *[1] * dims)
