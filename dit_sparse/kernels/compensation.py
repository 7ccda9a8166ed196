"""What a block map skips, approximated: every query attends to the mean key and mean value of the skipped
blocks.

A skipped block of n keys enters with the logit of its mean key plus ln n and with its mean value (SVG-EAR,
arXiv 2603.08982): exact where the keys of a block are alike, and nearly so for heads whose attention is
almost uniform. The torch path defines it; on a GPU one Triton kernel does it with the merge into the sparse
output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.checks import check_attention, check_tokens, resolve_scale
from dit_sparse.kernels.dispatch import use_triton
from dit_sparse.kernels.pooling import mean_key_logits, pool_blocks
from dit_sparse.kernels.variable_blocks import VariableBlocks, pooled_attend
from dit_sparse.layout import BlockMap


@torch.no_grad()
def pooled_attention(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, *, scale: float, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Attention to the means of the blocks that each row skips.

    Args:
        q: ``[B, Nq, H, D]``, float16, bfloat16 or float32; any strides with a contiguous last dimension.
        k, v: ``[B, Nk, H, D]`` like q.
        block_map: kept pairs; the others are pooled.
        scale: factor on the logits, positive.
        impl: "auto" (Triton on a GPU, for head sizes up to 128), "triton" or "reference". Triton rounds the
            means to the dtype of q.

    Returns:
        out ``[B, Nq, H, D]`` float32, and its log-sum-exp ``[B, H, Nq]`` float32. A row that skips nothing
        gives zeros and -inf.

    Raises:
        ValueError: for tensors or a map that do not fit together, or an ``impl`` that cannot run here.
    """
    check_attention(q, k, v, block_map)
    scale = resolve_scale(scale, q.shape[-1])
    if use_triton(q, impl, products=True):
        from dit_sparse.kernels import triton_compensation

        return triton_compensation.attend(q, k, v, block_map, scale=scale)
    batch, num_queries, heads, _ = q.shape
    q_block, k_block = block_map.block_size
    values = pool_blocks(v, k_block, impl="reference")
    kept = block_map.to_mask()
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, heads, num_queries, dtype=torch.float32, device=q.device)
    for rows, logits in mean_key_logits(q, k, k_block, scale):
        block_rows = torch.arange(rows.start, rows.stop, device=q.device) // q_block
        logits = logits.masked_fill(kept[:, :, block_rows], float("-inf"))
        total = torch.logsumexp(logits, dim=-1)
        weights = torch.exp(logits - total.nan_to_num(neginf=0.0)[..., None])
        out[:, rows] = (weights @ values).transpose(1, 2)
        lse[:, :, rows] = total
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


@torch.no_grad()
def compensate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    block_map: BlockMap | VariableBlocks,
    *,
    scale: float,
    impl: str = "auto",
) -> Tensor:
    """Sparse attention merged with the attention to the means of what it skipped.

    :func:`pooled_attention` and :func:`merge_attention` in one pass over q and ``out``.

    Args:
        q, k, v, block_map, scale, impl: as in :func:`pooled_attention`.
        out: sparse output ``[B, Nq, H, D]``; any strides with a contiguous last dimension.
        lse: its log-sum-exp, float32 ``[B, H, Nq]``, -inf for rows that keep nothing.

    Returns:
        ``[B, Nq, H, D]`` in the dtype of ``out``. Rows that skip nothing are those of ``out``.

    Raises:
        ValueError: for tensors or a map that do not fit together, or an ``impl`` that cannot run here.
    """
    if isinstance(block_map, VariableBlocks):
        return merge_attention(out, lse, *pooled_attend(q, k, v, block_map, scale=scale))
    check_attention(q, k, v, block_map)
    check_tokens("out", out)
    if out.shape != q.shape or out.device != q.device:
        raise ValueError(
            f"out must match q {tuple(q.shape)} on {q.device}, got {tuple(out.shape)} on {out.device}"
        )
    rows = (q.shape[0], q.shape[2], q.shape[1])
    if tuple(lse.shape) != rows or lse.dtype != torch.float32 or lse.device != q.device:
        raise ValueError(
            f"lse must be float32 [B, H, Nq] = {rows} on {q.device}, "
            f"got {lse.dtype} {tuple(lse.shape)} on {lse.device}"
        )
    if use_triton(q, impl, products=True):
        from dit_sparse.kernels import triton_compensation

        scale = resolve_scale(scale, q.shape[-1])
        return triton_compensation.attend(q, k, v, block_map, scale=scale, first=(out, lse))[0]
    pooled = pooled_attention(q, k, v, block_map, scale=scale, impl="reference")
    return merge_attention(out, lse, *pooled)
