"""Logits of 4-bit queries and keys, compared with an exact part of the softmax (SALE, arXiv 2505.24179).

Every element of ``q k^T`` is estimated, so a single strong key in a block of weak ones is found, which no
mean shows. Only the definition is here, in the arithmetic of float32; the gain is a 4-bit unit's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.kernels.checks import check_block_size, check_pair, resolve_scale
from dit_sparse.kernels.pooling import CHUNK_BYTES
from dit_sparse.kernels.quantize import (
    KEY_GROUP,
    LOW_PRECISIONS,
    QUERY_GROUP,
    dequantize_rows,
    quantize_rows,
)


@torch.no_grad()
def low_bit_margin(
    q: Tensor, k: Tensor, lse: Tensor, block_size: tuple[int, int], scale: float | None = None
) -> Tensor:
    """How far the strongest estimated logit of every block lies above a row's known log-sum-exp.

    q and k are rounded to 15 levels, one scale for :data:`~dit_sparse.kernels.quantize.QUERY_GROUP` queries
    and ``KEY_GROUP`` keys; the mean key is taken out first and its logits, exact, are added again.

    Args:
        q: ``[B, Nq, H, D]``.
        k: ``[B, Nk, H, D]``.
        lse: float32 ``[B, H, Nq]``: log-sum-exp of every row's logits over some keys that are known exactly.
        block_size: (query, key) block in tokens.
        scale: factor on the logits; 1 / sqrt(D) when None.

    Returns:
        float32 ``[B, H, nQ, nK]``: the largest of ``logit - lse`` in the block. Its exponential is the weight
        of the block's strongest element in units of the known part's.

    Raises:
        ValueError: for tensors that do not fit together.
    """
    check_pair(q, k)
    check_block_size(block_size)
    batch, num_queries, heads, dim = q.shape
    if tuple(lse.shape) != (batch, heads, num_queries):
        raise ValueError(f"lse must be [B, H, Nq] = {(batch, heads, num_queries)}, got {tuple(lse.shape)}")
    scale, four_bits = resolve_scale(scale, dim), LOW_PRECISIONS["int4"]
    centre = k.mean(dim=1, dtype=torch.float32)
    q_levels, q_scale, offset = quantize_rows(q, QUERY_GROUP, four_bits.top, four_bits.qk, project=centre)
    k_levels, k_scale, _ = quantize_rows(k, KEY_GROUP, four_bits.top, four_bits.qk, centre=centre)
    assert offset is not None
    queries = dequantize_rows(q_levels, q_scale, num_queries, dim).transpose(1, 2)
    keys = dequantize_rows(k_levels, k_scale, k.shape[1], dim).permute(0, 2, 3, 1) * scale
    known = lse.float() - offset * scale
    block_q, block_k = block_size
    step = max(1, CHUNK_BYTES // (4 * batch * heads * k.shape[1] * block_q)) * block_q
    parts = []
    for start in range(0, num_queries, step):
        rows = slice(start, start + step)
        margins = _block_max(queries[:, :, rows] @ keys, block_k) - known[:, :, rows, None]
        parts.append(_block_max(margins.transpose(-1, -2), block_q).transpose(-1, -2))
    return torch.cat(parts, dim=2)


def _block_max(x: Tensor, block: int) -> Tensor:
    """``[..., n]`` to ``[..., ceil(n / block)]``: the largest of runs of ``block``."""
    return F.pad(x, (0, -x.shape[-1] % block), value=-torch.inf).unflatten(-1, (-1, block)).amax(dim=-1)
