"""How alike the tokens of a block are: whether its mean can stand for it."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.checks import check_tokens
from dit_sparse.kernels.pooling import CHUNK_BYTES, pool_blocks


@torch.no_grad()
def block_similarity(x: Tensor, block_size: int, *, centred: bool = False) -> Tensor:
    """Mean cosine over all pairs of tokens of a block (SpargeAttention, arXiv 2502.18137).

    It is the squared length of the mean of the tokens' directions: 1 where all point the same way, 1 / tokens
    where they are orthogonal.

    Args:
        x: ``[B, N, H, D]``.
        block_size: tokens per block, >= 1; the last block may be ragged.
        centred: compare the tokens' differences from the mean of all tokens. Keys have a large common part
            that the softmax does not see.

    Returns:
        float32 ``[B, H, ceil(N / block_size)]`` in [0, 1].
    """
    check_tokens("x", x)
    batch, length, num_heads, dim = x.shape
    step = max(1, CHUNK_BYTES // (4 * batch * length * dim))
    parts = []
    for start in range(0, num_heads, step):
        tokens = x[:, :, start : start + step].float()
        if centred:
            tokens = tokens - tokens.mean(dim=1, keepdim=True)
        directions = torch.nn.functional.normalize(tokens, dim=-1)
        parts.append(pool_blocks(directions, block_size).square().sum(dim=-1))
    return torch.cat(parts, dim=1)
