"""Dense attention that also gives the log-sum-exp, which PyTorch's public attention keeps to itself."""

from __future__ import annotations

from torch import Tensor

from dit_sparse.kernels.dispatch import block_sparse_attention
from dit_sparse.layout import BlockMap

BLOCK = (128, 128)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Attention of every query to every key, by the block-sparse kernel with a full map.

    Args:
        q: ``[B, Nq, H, D]``.
        k, v: ``[B, Nk, H, D]``.
        scale: factor on the logits; 1 / sqrt(D) when None.
        impl: see :func:`~dit_sparse.kernels.block_sparse_attention`.

    Returns:
        out ``[B, Nq, H, D]`` in q's dtype; lse float32 ``[B, H, Nq]``, natural logarithm.
    """
    block_map = BlockMap.full(q.shape[0], q.shape[2], q.shape[1], k.shape[1], BLOCK, q.device)
    out, lse = block_sparse_attention(q, k, v, block_map, scale=scale, return_lse=True, impl=impl)
    return out, lse
