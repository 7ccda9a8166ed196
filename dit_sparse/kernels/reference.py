"""Block-sparse attention, by definition: the oracle every kernel is tested against.

For each query block: ``softmax(scale * q k^T) v`` in float32 over the tokens of the key blocks it keeps, and
over nothing else. One small dense attention at a time, with no care for speed; use it to check, not to run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.layout import BlockMap


def forward(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, *, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """See :func:`dit_sparse.kernels.block_sparse_attention`. Always forms the log-sum-exp.

    A row that keeps nothing needs no special case: the sum over no keys is zero, its logarithm -inf.
    """
    batch, num_queries, heads, _ = q.shape
    block_q, block_k = block_map.block_size
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, num_queries, dtype=torch.float32, device=q.device)
    mask = block_map.to_mask()
    for b in range(batch):
        for h in range(heads):
            for i in range(mask.shape[2]):
                rows = slice(i * block_q, (i + 1) * block_q)
                kept = mask[b, h, i].repeat_interleave(block_k)[: block_map.num_keys]
                logits = (q[b, rows, h].float() @ k[b, kept, h].float().T) * scale
                lse[b, h, rows] = torch.logsumexp(logits, dim=-1)
                out[b, rows, h] = (torch.softmax(logits, dim=-1) @ v[b, kept, h].float()).to(q.dtype)
    return out, lse if return_lse else None
