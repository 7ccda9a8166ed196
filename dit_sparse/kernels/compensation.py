"""What a block map skips, approximated: every query attends to the mean key and mean value of the skipped
blocks.

The definition, in plain torch, chunked over queries. A skipped block of n keys enters with the logit of its
mean key plus ln n and with its mean value (SVG-EAR, arXiv 2603.08982): exact where the keys of a block are
alike, and nearly so for heads whose attention is almost uniform.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.pooling import block_lengths, pool_blocks
from dit_sparse.layout import BlockMap

CHUNK_BYTES = 128 * 2**20
"""Bound on the float32 logits of one chunk of queries, over all heads."""


@torch.no_grad()
def pooled_attention(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention to the means of the blocks that each row skips.

    Args:
        q: ``[B, Nq, H, D]``.
        k, v: ``[B, Nk, H, D]``.
        block_map: kept pairs; the others are pooled.
        scale: factor on the logits.

    Returns:
        out ``[B, Nq, H, D]`` float32, and its log-sum-exp ``[B, H, Nq]`` float32. A row that skips nothing
        gives zeros and -inf.
    """
    batch, num_queries, heads, dim = q.shape
    q_block, k_block = block_map.block_size
    keys = pool_blocks(k, k_block)
    values = pool_blocks(v, k_block)
    weight = block_lengths(block_map.num_keys, k_block, q.device).log()
    kept = block_map.to_mask()
    out = torch.empty(batch, num_queries, heads, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, heads, num_queries, dtype=torch.float32, device=q.device)
    step = max(1, CHUNK_BYTES // (4 * batch * heads * keys.shape[2]))
    for start in range(0, num_queries, step):
        rows = torch.arange(start, min(start + step, num_queries), device=q.device)
        part = q[:, start : start + step].transpose(1, 2).float()
        logits = part @ keys.transpose(-1, -2) * scale + weight
        logits = logits.masked_fill(kept[:, :, rows // q_block], float("-inf"))
        total = torch.logsumexp(logits, dim=-1)
        weights = torch.exp(logits - total.nan_to_num(neginf=0.0)[..., None])
        out[:, start : start + step] = (weights @ values).transpose(1, 2)
        lse[:, :, start : start + step] = total
    return out, lse


def merge_attention(first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor) -> Tensor:
    """Attention over the union of two disjoint sets of keys, from the attention over each.

    Args:
        first, second: ``[B, N, H, D]``.
        first_lse, second_lse: ``[B, H, N]``; -inf for an empty set.

    Returns:
        ``[B, N, H, D]`` in the dtype of ``first``; zeros where both sets are empty.
    """
    share = torch.sigmoid(first_lse - second_lse).nan_to_num(nan=0.0)  # both empty: -inf - -inf
    share = share.transpose(1, 2)[..., None]
    return (first * share + second * (1 - share)).to(first.dtype)
