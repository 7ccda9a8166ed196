"""Block-sparse attention that skips work without a custom kernel: gather the kept key blocks, then attend
densely.

The fast path on CPU. Rows of the block map (one query block of one head) that keep a similar number of blocks
are batched: their key and value blocks are gathered into ``[rows, blocks * key block, D]``, and one dense
attention call serves the batch. Time follows the number of kept blocks; gathering adds about 5%, rounding
block counts up to the bucket's about 6%.

All arithmetic is float32. The block counts are read on the host, so on a GPU this path synchronises: it is
there the fallback of last resort.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.layout import BlockMap, ceil_div

GATHER_BYTES = 8 * 2**20
"""Bound on the gathered keys and values of one batch of rows: about what the last-level cache holds."""
BUCKET_RATIO = 8
"""Rows share a bucket when their counts differ by at most one part in this many: padding against number of
calls."""

GATHERED = -1
"""Bucket key of rows whose keys are gathered, where full rows have the index of their head."""


def bucket_ceiling(count: int) -> int:
    """The block count that a row keeping ``count`` blocks is padded to: ``count`` itself up to
    ``BUCKET_RATIO``, then the next multiple of the largest power of two that is at most ``count /
    BUCKET_RATIO``."""
    step = 1
    while step * 2 * BUCKET_RATIO <= count:
        step *= 2
    return ceil_div(count, step) * step


def _blocked(x: Tensor, block: int) -> Tensor:
    """``[B, N, H, D]`` to float32 ``[B * H * blocks, block, D]``, the ragged end padded with zeros."""
    batch, tokens, heads, dim = x.shape
    padded = F.pad(x.transpose(1, 2).float(), (0, 0, 0, -tokens % block))
    return padded.reshape(batch * heads * ceil_div(tokens, block), block, dim)


def attend_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Dense attention of R independent rows, ``[R, queries, D]`` on ``[R, keys, D]``: output and log-sum-exp.

    Args:
        mask: additive float32 ``[R, 1, keys]`` or None.
    """
    if q.device.type == "cpu":
        # PyTorch's own CPU flash attention, by the name that also returns the log-sum-exp.
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, None], k[:, None], v[:, None], attn_mask=None if mask is None else mask[:, None], scale=scale
        )
        return out[:, 0], lse[:, 0]
    logits = torch.bmm(q, k.transpose(1, 2)) * scale
    if mask is not None:
        logits = logits + mask
    lse = torch.logsumexp(logits, dim=-1)
    return torch.bmm(torch.exp(logits - lse[..., None]), v), lse


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    scale: float,
    return_lse: bool,
    attend: Callable[..., tuple[Tensor, Tensor]] = attend_rows,
) -> tuple[Tensor, Tensor | None]:
    """See :func:`dit_sparse.kernels.block_sparse_attention`.

    Args:
        attend: called like :func:`attend_rows`, in its place.
    """
    batch, num_queries, heads, dim = q.shape
    block_q, block_k = block_map.block_size
    _, _, rows_per_head, keys_per_head = block_map.shape
    offsets = torch.arange(block_k, device=q.device)
    q_blocks, k_blocks, v_blocks = _blocked(q, block_q), _blocked(k, block_k), _blocked(v, block_k)
    # float32 until the end; zeros and -inf are the answer of a row that keeps nothing.
    out = torch.zeros_like(q_blocks)
    lse = torch.full(q_blocks.shape[:2], -torch.inf, device=q.device)

    indices = block_map.indices.flatten(0, 2).long()
    counts = block_map.counts.flatten()
    buckets: dict[tuple[int, int], list[int]] = {}
    for row, count in enumerate(counts.tolist()):
        # Rows that keep everything share the keys of their head as they lie; the others are gathered.
        head = row // rows_per_head if count == keys_per_head else GATHERED
        if count:
            buckets.setdefault((head, min(bucket_ceiling(count), indices.shape[1])), []).append(row)
    for (head, slots), members in buckets.items():
        rows = torch.tensor(members, device=q.device)
        if head != GATHERED:
            whole = slice(head * keys_per_head, (head + 1) * keys_per_head)
            head_k, head_v = (
                x[whole].view(1, -1, dim)[:, : block_map.num_keys] for x in (k_blocks, v_blocks)
            )
            row_out, row_lse = attend(q_blocks[rows].view(1, -1, dim), head_k, head_v, None, scale)
            out[rows], lse[rows] = row_out.view(-1, block_q, dim), row_lse.view(-1, block_q)
            continue
        row_bytes = 2 * slots * block_k * dim * k_blocks.element_size()
        batches = rows.chunk(max(1, min(len(members), ceil_div(len(members) * row_bytes, GATHER_BYTES))))
        # One buffer for all batches: fresh memory would cost a page fault for every 4 KB gathered.
        buffer = k_blocks.new_empty(2, len(batches[0]) * slots, block_k, dim)
        for batch_rows in batches:
            kept = indices[batch_rows, :slots]
            dead = torch.arange(slots, device=q.device) >= counts[batch_rows, None]
            hidden = dead[..., None] | (kept[..., None] * block_k + offsets >= block_map.num_keys)
            mask = (
                torch.zeros(hidden.shape, device=q.device)
                .masked_fill_(hidden, -torch.inf)
                .flatten(1)[:, None]
            )
            source = (kept + (batch_rows // rows_per_head * keys_per_head)[:, None]).flatten()
            row_k, row_v = (
                torch.index_select(x, 0, source, out=part[: len(source)]).view(len(batch_rows), -1, dim)
                for x, part in zip((k_blocks, v_blocks), buffer)
            )
            out[batch_rows], lse[batch_rows] = attend(q_blocks[batch_rows], row_k, row_v, mask, scale)

    shaped = out.view(batch, heads, rows_per_head * block_q, dim)[:, :, :num_queries]
    result = torch.empty(q.shape, dtype=q.dtype, device=q.device).copy_(shaped.transpose(1, 2))
    return result, lse.view(batch, heads, -1)[..., :num_queries].contiguous() if return_lse else None
