"""Block means, the logits between them, and the exact block mass they estimate.

Selectors rank (query block, key block) pairs. The cheap estimate pools: the logit between two block means,
plus the logarithm of the key block's size, stands for the block's whole row of logits (exact when a block's
tokens are equal; the estimator of SVG2 and of most training-free methods). The exact quantity is
:func:`block_mass`, the share of the softmax that falls into a block, which needs the log-sum-exp of a dense
pass (AdaSpa, arXiv:2502.21079). Between the two, :func:`mean_key_mass` pools the keys alone. The torch paths
define; on a GPU Triton kernels pool and stream queries past mean keys without a tensor of logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dit_sparse.kernels.checks import check_block_size, check_pair, check_tokens, resolve_scale
from dit_sparse.kernels.dispatch import use_triton
from dit_sparse.layout import ceil_div

CHUNK_BYTES = 64 * 2**20
"""Bound on the float32 logits that the torch paths hold at once."""


@torch.no_grad()
def pool_blocks(x: Tensor, block_size: int, *, impl: str = "auto") -> Tensor:
    """Mean token of every block of ``block_size`` consecutive tokens; the last block averages the tokens it
    has.

    Args:
        x: ``[B, N, H, D]``, any strides with a contiguous last dimension.
        block_size: tokens per block, >= 1; it need not divide N.
        impl: "auto" (Triton on a GPU), "triton" or "reference".

    Returns:
        float32 ``[B, H, ceil(N / block_size), D]``, accumulated in float32.
    """
    check_tokens("x", x)
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if use_triton(x, impl):
        from dit_sparse.kernels import triton_pooled

        return triton_pooled.pool(x, block_size)
    whole = x.shape[1] // block_size * block_size
    parts = []
    if whole:
        parts.append(x[:, :whole].unflatten(1, (-1, block_size)).mean(dim=2, dtype=torch.float32))
    if whole < x.shape[1]:
        parts.append(x[:, whole:].mean(dim=1, keepdim=True, dtype=torch.float32))
    return torch.cat(parts, dim=1).transpose(1, 2).contiguous()


def block_lengths(tokens: int, block_size: int, device: torch.device) -> Tensor:
    """Tokens in every block, float32 ``[ceil(tokens / block_size)]``: ``block_size``, but for a ragged last
    one."""
    starts = torch.arange(0, tokens, block_size, device=device)
    return (tokens - starts).clamp(max=block_size).float()


@torch.no_grad()
def pooled_scores(q: Tensor, k: Tensor, block_size: tuple[int, int], scale: float | None = None) -> Tensor:
    """Logits between block means plus ln(tokens of the key block).

    Their softmax over the last dimension estimates the share of attention that falls into each key block.

    Args:
        q: ``[B, Nq, H, D]``.
        k: ``[B, Nk, H, D]``.
        block_size: (query, key) block in tokens.
        scale: factor on the logits; 1 / sqrt(D) when None.

    Returns:
        float32 ``[B, H, nQ, nK]``.
    """
    check_pair(q, k)
    check_block_size(block_size)
    means_q, means_k = pool_blocks(q, block_size[0]), pool_blocks(k, block_size[1])
    scores = means_q @ means_k.transpose(-1, -2) * resolve_scale(scale, q.shape[-1])
    return scores + block_lengths(k.shape[1], block_size[1], k.device).log()


@torch.no_grad()
def mean_key_logits(
    q: Tensor, k: Tensor, block_k: int, scale: float, multiple: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """Logits of every query with the mean key of every block plus ln(tokens of the block), in chunks of
    queries near ``CHUNK_BYTES``.

    Args:
        q: ``[B, Nq, H, D]``.
        k: ``[B, Nk, H, D]``.
        block_k: key block in tokens.
        scale: factor on the logits.
        multiple: chunks hold a multiple of this many queries.

    Yields:
        The queries, and their logits: float32 ``[B, H, queries, nK]``.
    """
    batch, num_queries, heads, _ = q.shape
    keys = pool_blocks(k, block_k, impl="reference").transpose(-1, -2) * scale
    weight = block_lengths(k.shape[1], block_k, k.device).log()
    step = max(1, CHUNK_BYTES // (4 * batch * heads * keys.shape[-1] * multiple)) * multiple
    for start in range(0, num_queries, step):
        rows = slice(start, min(start + step, num_queries))
        yield rows, q[:, rows].transpose(1, 2).float() @ keys + weight


@torch.no_grad()
def mean_key_mass(
    q: Tensor,
    k: Tensor,
    block_size: tuple[int, int],
    scale: float | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """Share of attention in every block when only the keys are pooled, averaged over the query block's rows.

    Every query meets the mean key of every block: 1 / (key block) of the dense work, and no blur from
    averaging queries that look elsewhere.

    Args:
        q: ``[B, Nq, H, D]``.
        k: ``[B, Nk, H, D]``.
        block_size: (query, key) block in tokens.
        scale: factor on the logits; 1 / sqrt(D) when None.
        impl: "auto" (Triton on a GPU, for head sizes up to 128), "triton" or "reference". Triton rounds the
            mean keys to the dtype of k.

    Returns:
        float32 ``[B, H, nQ, nK]``; rows sum to 1.
    """
    check_pair(q, k)
    check_block_size(block_size)
    scale = resolve_scale(scale, q.shape[-1])
    if use_triton(q, impl, products=True):
        from dit_sparse.kernels import triton_pooled

        return triton_pooled.mass(q, k, block_size, scale=scale)
    block_q, block_k = block_size
    shares = (logits.softmax(dim=-1) for _, logits in mean_key_logits(q, k, block_k, scale, block_q))
    return torch.cat([pool_blocks(s.transpose(1, 2), block_q, impl="reference") for s in shares], dim=2)


@torch.no_grad()
def block_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    block_size: tuple[int, int],
    scale: float | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """Exact share of the softmax in every block, averaged over the rows of the query block.

    Streams: beside the result the reference takes about ``CHUNK_BYTES``, whatever N, and Triton nothing.

    Args:
        q: ``[B, Nq, H, D]``.
        k: ``[B, Nk, H, D]``.
        lse: log-sum-exp of the scaled logits, ``[B, H, Nq]``. That of dense attention makes every row of the
            result sum to 1. Rows with lse = -inf count as zero mass.
        block_size: (query, key) block in tokens.
        scale: factor on the logits; 1 / sqrt(D) when None.
        impl: "auto" (Triton on a GPU, for head sizes up to 128), "triton" or "reference".

    Returns:
        float32 ``[B, H, nQ, nK]``.
    """
    check_pair(q, k)
    check_block_size(block_size)
    batch, num_queries, heads, dim = q.shape
    if tuple(lse.shape) != (batch, heads, num_queries):
        raise ValueError(f"lse must be [B, H, Nq] = {(batch, heads, num_queries)}, got {tuple(lse.shape)}")
    block_q, block_k = block_size
    num_keys = k.shape[1]
    scale = resolve_scale(scale, dim)
    if use_triton(q, impl, products=True):
        from dit_sparse.kernels import triton_mass

        return triton_mass.block_mass(q, k, lse, block_size, scale=scale)
    mass = torch.empty(
        batch, heads, ceil_div(num_queries, block_q), ceil_div(num_keys, block_k), device=q.device
    )
    # exp(logit - inf) = 0 for rows that attended to nothing.
    lse = lse.float().masked_fill(torch.isneginf(lse), torch.inf)
    rows_per_chunk = max(1, CHUNK_BYTES // (4 * num_keys * block_q)) * block_q
    for b in range(batch):
        for h in range(heads):
            keys = k[b, :, h].float().T * scale
            for start in range(0, num_queries, rows_per_chunk):
                rows = slice(start, min(start + rows_per_chunk, num_queries))
                shares = torch.exp(q[b, rows, h].float() @ keys - lse[b, h, rows, None])
                shares = _sum_blocks(_sum_blocks(shares, block_k).T, block_q).T
                mass[b, h, start // block_q : ceil_div(rows.stop, block_q)] = shares
    return mass / block_lengths(num_queries, block_q, q.device)[:, None]


def _sum_blocks(x: Tensor, block: int) -> Tensor:
    """``[rows, n]`` to ``[rows, ceil(n / block)]``: sums over runs of ``block`` columns."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % block))
    return padded.unflatten(-1, (-1, block)).sum(dim=-1)
