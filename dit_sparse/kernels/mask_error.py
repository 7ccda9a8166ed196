"""What a block mask costs: the squared error of its attention, per head."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.checks import resolve_scale
from dit_sparse.kernels.compensation import compensate
from dit_sparse.kernels.dispatch import block_sparse_attention
from dit_sparse.layout import BlockMap


@torch.no_grad()
def mask_error(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    mask: Tensor,
    block_size: tuple[int, int],
    scale: float | None = None,
    *,
    compensated: bool = False,
) -> Tensor:
    """Squared distance of the attention under a mask from the dense output, summed over tokens and channels.

    Args:
        q: ``[B, Nq, H, D]``.
        k, v: ``[B, Nk, H, D]``.
        out: dense output of these queries ``[B, Nq, H, D]``.
        mask: bool ``[B, H, nQ, nK]``, or with 1 for B and H where it is the same for all.
        block_size: (query, key) block in tokens.
        scale: factor on the logits; 1 / sqrt(D) when None.
        compensated: let skipped blocks enter through their means, see
            :func:`~dit_sparse.kernels.compensate`.

    Returns:
        float32 ``[B, H]``.
    """
    batch, queries, heads, _ = q.shape
    block_map = BlockMap.from_mask(mask.expand(batch, heads, -1, -1), queries, k.shape[1], block_size)
    if compensated:
        sparse, lse = block_sparse_attention(q, k, v, block_map, scale=scale, return_lse=True)
        sparse = compensate(q, k, v, sparse, lse, block_map, scale=resolve_scale(scale, q.shape[-1]))
    else:
        sparse = block_sparse_attention(q, k, v, block_map, scale=scale)
    assert isinstance(sparse, Tensor)
    return (sparse.float() - out.float()).square().sum(dim=(1, 3))
