"""Attention of a few sampled query rows to all keys, and what is read from it.

The rows stand for their head: methods that look for a pattern in the attention map (arXiv 2502.01776, arXiv
2407.02490) need no more than some dozens of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dit_sparse.kernels.checks import check_pair, resolve_scale
from dit_sparse.kernels.pooling import CHUNK_BYTES
from dit_sparse.layout import ceil_div

GOLDEN = 0.6180339887498949
"""Its multiples, modulo 1, are as evenly spread as can be, and repeat no pattern."""
RANKING_ROWS = 32
"""Queries of a block that are enough to rank its pairs."""


def run_length(block: int, rows: int) -> int:
    """Tokens that each of ``rows`` representatives of a block stands for; 1 where they do not divide it."""
    run = max(1, block // rows)
    return 1 if block % run else run


def representative_rows(tokens: int, block: int, rows: int, device: torch.device) -> Tensor:
    """Positions of the tokens that stand for their block: one of each of ``rows`` equal runs.

    Where in its run it lies moves by the golden ratio from run to run. With a fixed stride the rows of a
    space-time tile would all lie in a few of its columns, and stand for those alone.

    Args:
        tokens: of the sequence.
        block: tokens per block, >= 1.
        rows: wanted per block, >= 1; where they do not divide the block, every token is taken.
        device: of the result.

    Returns:
        int64, ascending: ``min(rows, block)`` of every whole block, fewer of a last block that is shorter.

    >>> representative_rows(16, 8, 2, torch.device("cpu")).tolist()
    [0, 6, 8, 15]
    """
    run = run_length(block, rows)
    runs = torch.arange(ceil_div(tokens, run), device=device)
    # In float64: the fraction of a product of thousands must be exact to a token.
    offset = (torch.frac(runs.double() * GOLDEN) * run).long()
    return (runs * run + offset).clamp(max=tokens - 1)


@torch.no_grad()
def sampled_attention(q: Tensor, k: Tensor, scale: float | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Softmax of sampled rows, a few heads at a time, memory near ``CHUNK_BYTES``.

    Args:
        q: ``[B, R, H, D]``, the sampled queries.
        k: ``[B, N, H, D]``.
        scale: factor on the logits; 1 / sqrt(D) when None.

    Yields:
        The heads, and their attention: float32 ``[B, heads, R, N]``, rows sum to 1.
    """
    check_pair(q, k)
    scale = resolve_scale(scale, q.shape[-1])
    batch, rows, num_heads, _ = q.shape
    step = max(1, CHUNK_BYTES // (4 * batch * rows * k.shape[1]))
    for start in range(0, num_heads, step):
        heads = slice(start, min(start + step, num_heads))
        queries, keys = (x[:, :, heads].transpose(1, 2).float() for x in (q, k))
        yield heads, (queries @ keys.transpose(-1, -2) * scale).softmax(dim=-1)


@torch.no_grad()
def sampled_recall(q: Tensor, k: Tensor, masks: Tensor, scale: float | None = None) -> Tensor:
    """Share of the sampled rows' attention that falls into each of some masks.

    Args:
        q: ``[B, R, H, D]``, the sampled queries.
        k: ``[B, N, H, D]``.
        masks: bool ``[M, R, N]``, the keys that a mask keeps for every row.
        scale: factor on the logits; 1 / sqrt(D) when None.

    Returns:
        float32 ``[B, H, M]`` in [0, 1], mean over the rows.
    """
    if masks.dim() != 3 or tuple(masks.shape[1:]) != (q.shape[1], k.shape[1]):
        raise ValueError(f"masks must be [M, {q.shape[1]}, {k.shape[1]}], got {tuple(masks.shape)}")
    kept = masks.float()
    parts = [torch.einsum("bhrn,mrn->bhm", share, kept) for _, share in sampled_attention(q, k, scale)]
    return torch.cat(parts, dim=1) / q.shape[1]


@torch.no_grad()
def sampled_block_mass(q: Tensor, k: Tensor, block_k: int, scale: float | None = None) -> Tensor:
    """Share of every sampled row's attention in every key block.

    Args:
        q: ``[B, R, H, D]``, the sampled queries.
        k: ``[B, N, H, D]``.
        block_k: key block in tokens, >= 1.
        scale: factor on the logits; 1 / sqrt(D) when None.

    Returns:
        float32 ``[B, H, R, ceil(N / block_k)]``; rows sum to 1.
    """
    if block_k < 1:
        raise ValueError(f"block_k must be at least 1, got {block_k}")
    pad = -k.shape[1] % block_k
    parts = [
        torch.nn.functional.pad(share, (0, pad)).unflatten(-1, (-1, block_k)).sum(dim=-1)
        for _, share in sampled_attention(q, k, scale)
    ]
    return torch.cat(parts, dim=1)
