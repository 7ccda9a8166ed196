"""What it costs to skip a block whose mean key and mean value stand in for it: exact, and two estimates.

Skipping pays where the means serve, wherever the mass lies. All functions give, for every pair of
blocks, the square of what the attention output is off by to first order when that pair alone is skipped,
averaged over the rows of the query block, up to a factor that is the same for all pairs. The torch paths
define; the exact one has a Triton kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dit_sparse.kernels.checks import check_block_size, check_pair, resolve_scale
from dit_sparse.kernels.dispatch import use_triton
from dit_sparse.kernels.pooling import CHUNK_BYTES, block_lengths, mean_key_logits, pool_blocks
from dit_sparse.kernels.sampling import representative_rows, run_length
from dit_sparse.kernels.variable_blocks import VariableBlocks, members, pool_variable
from dit_sparse.layout import ceil_div


@torch.no_grad()
def skip_error(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    block_size: tuple[int, int],
    scale: float | None = None,
    *,
    compensated: bool = True,
    rows: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """The error of skipping each block, from dense attention: the limit of every estimate.

    ``|sum_k P_k (v_k - o) - n P_mean (v_mean - o)|^2`` with P the weights of dense attention, o its output
    and P_mean the weight of a key at the block's mean; the second term only where skipped blocks are
    compensated. It needs more than the work of dense attention.

    Args:
        q, k, v, out: ``[B, N, H, D]``, out of dense attention.
        lse: its log-sum-exp ``[B, H, N]``.
        block_size: (query, key) block in tokens.
        scale: factor on the logits; 1 / sqrt(D) when None.
        compensated: whether skipped blocks enter through their means.
        rows: queries of every query block that stand for it, see :func:`representative_rows`; None for all.
        impl: "auto" (Triton on a GPU, for head sizes up to 128), "triton" or "reference". Triton rounds
            weights and means to the dtype of the inputs.

    Returns:
        float32 ``[B, H, nQ, nK]``.
    """
    check_pair(q, k)
    check_block_size(block_size)
    scale = resolve_scale(scale, q.shape[-1])
    if rows is not None and (run := run_length(block_size[0], rows)) > 1:
        some = representative_rows(q.shape[1], block_size[0], rows, q.device)
        q, out, lse = q.index_select(1, some), out.index_select(1, some), lse.index_select(-1, some)
        block_size = (block_size[0] // run, block_size[1])
    if use_triton(q, impl, products=True):
        from dit_sparse.kernels import triton_skip_error

        return triton_skip_error.skip_error(
            q, k, v, out, lse, block_size, scale=scale, compensated=compensated
        )
    block_q, block_k = block_size
    lengths = block_lengths(k.shape[1], block_k, k.device)
    means_k, means_v = pool_blocks(k, block_k, impl="reference"), pool_blocks(v, block_k, impl="reference")
    error = torch.empty(q.shape[0], q.shape[2], ceil_div(q.shape[1], block_q), len(lengths), device=q.device)
    for b, h, span in _row_chunks(q, block_q, 4 * (k.shape[1] + 2 * len(lengths) * q.shape[-1])):
        queries, o = q[b, span, h].float() * scale, out[b, span, h].float()
        row_lse = lse[b, h, span, None].float()
        weights = torch.exp(queries @ k[b, :, h].float().T - row_lse)
        # [rows, nK, D]: the block's share of the output, about o.
        missing = _blockwise(weights, block_k).transpose(0, 1) @ _blocked_rows(v[b, :, h].float(), block_k)
        missing = missing.transpose(0, 1) - _blockwise(weights, block_k).sum(-1)[..., None] * o[:, None]
        if compensated:
            pooled = torch.exp(queries @ means_k[b, h].T - row_lse) * lengths
            missing = missing - pooled[..., None] * (means_v[b, h] - o[:, None])
        squares = missing.square().sum(dim=-1)
        blocks = slice(span.start // block_q, ceil_div(span.stop, block_q))
        error[b, h, blocks] = pool_blocks(squares[None, :, None], block_q, impl="reference")[0, 0]
    return error


@torch.no_grad()
def centroid_error(
    q: Tensor, k: Tensor, v: Tensor, block_size: tuple[int, int], scale: float | None = None
) -> Tensor:
    """SVG-EAR's estimate (arXiv 2603.08982): the block's mean query stands for its rows.

    ``sum_k |exp(q_mean . k_mean) v_mean - exp(q_mean . k) v_k|^2`` over the keys of the block, relative to
    the square of the mean query's softmax denominator. 1 / (query block) of the work of ``q k^T``.

    Args:
        q, k, v: ``[B, N, H, D]``.
        block_size: (query, key) block in tokens.
        scale: factor on the logits; 1 / sqrt(D) when None.

    Returns:
        float32 ``[B, H, nQ, nK]``.
    """
    check_pair(q, k)
    check_block_size(block_size)
    block_q, block_k = block_size
    queries = pool_blocks(q, block_q, impl="reference") * resolve_scale(scale, q.shape[-1])
    means_k, means_v = pool_blocks(k, block_k, impl="reference"), pool_blocks(v, block_k, impl="reference")
    lengths = block_lengths(k.shape[1], block_k, k.device)
    own_mean = means_v.repeat_interleave(block_k, dim=2)[:, :, : k.shape[1]]
    return _mean_query_error(
        queries, k, v, means_k, means_v, own_mean, lengths, lambda x: _blockwise(x, block_k).sum(dim=-1)
    )


@torch.no_grad()
def cluster_error(
    q: Tensor, k: Tensor, v: Tensor, blocks: VariableBlocks, scale: float | None = None
) -> Tensor:
    """:func:`centroid_error` over blocks of variable length, whose mask is not read; 0 for empty ones.

    Args:
        q, k, v: ``[B, N, H, D]`` in the order of the blocks.
        blocks: their lengths.
        scale: factor on the logits; 1 / sqrt(D) when None.

    Returns:
        float32 ``[B, H, nQ, nK]``.
    """
    check_pair(q, k)
    queries = pool_variable(q, blocks.q_lengths) * resolve_scale(scale, q.shape[-1])
    means_k, means_v = pool_variable(k, blocks.kv_lengths), pool_variable(v, blocks.kv_lengths)
    member = members(blocks.kv_lengths, k.shape[1])
    return _mean_query_error(
        queries, k, v, means_k, means_v, member @ means_v, blocks.kv_lengths, lambda x: x @ member
    )


def _mean_query_error(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    means_k: Tensor,
    means_v: Tensor,
    own_mean: Tensor,
    lengths: Tensor,
    block_sum: Callable[[Tensor], Tensor],
) -> Tensor:
    """The sum over keys for scaled mean queries ``[B, H, nQ, D]``, in chunks of them.

    Args:
        k, v: ``[B, N, H, D]``.
        means_k, means_v: of every block, ``[B, H, nK, D]``.
        own_mean: every token's mean value, ``[B, H, N, D]``.
        lengths: tokens per block, ``[..., nK]``.
        block_sum: ``[B, H, rows, N]`` to sums over blocks ``[B, H, rows, nK]``.
    """
    keys, values = k.permute(0, 2, 3, 1).float(), v.transpose(1, 2).float()
    norms, products = values.square().sum(dim=-1)[:, :, None], (values * own_mean).sum(dim=-1)[:, :, None]
    mean_norms = (lengths * means_v.square().sum(dim=-1))[:, :, None]
    batch, heads, count, _ = queries.shape
    step = max(1, CHUNK_BYTES // (12 * batch * heads * k.shape[1]))
    parts = []
    for start in range(0, count, step):
        rows = queries[:, :, start : start + step]
        logits = rows @ keys
        total = torch.logsumexp(logits, dim=-1, keepdim=True)
        weights = torch.exp(logits - total)
        at_mean = torch.exp(rows @ means_k.transpose(-1, -2) - total)
        # The square of the difference, multiplied out: no [rows, N, D] is formed.
        mixed, own = block_sum(weights * products), block_sum(weights.square() * norms)
        parts.append(own - 2 * at_mean * mixed + at_mean.square() * mean_norms)
    return torch.cat(parts, dim=2).clamp(min=0)


@torch.no_grad()
def moment_error(
    q: Tensor, k: Tensor, v: Tensor, block_size: tuple[int, int], scale: float | None = None
) -> Tensor:
    """An estimate from the first two moments of a block's keys and values, for every query.

    To first order the means are off by the covariance of logit and value within the block, times the block's
    mass p; by Cauchy and Schwarz its square is at most ``p^2 s^2 t``: s^2 the variance of the block's logits,
    from the variance of its keys per channel, and t the variance of its values, summed over channels. Beyond
    a spread of one the expansion fails, and nothing can be off by much more than t: s^2 / (1 + s^2) takes the
    place of s^2. About twice the work of :func:`~dit_sparse.kernels.mean_key_mass`.

    Args:
        q, k, v: ``[B, N, H, D]``.
        block_size: (query, key) block in tokens.
        scale: factor on the logits; 1 / sqrt(D) when None.

    Returns:
        float32 ``[B, H, nQ, nK]``.
    """
    check_pair(q, k)
    check_block_size(block_size)
    scale = resolve_scale(scale, q.shape[-1])
    block_q, block_k = block_size
    spread_k = block_variances(k, block_k).transpose(-1, -2) * scale**2
    spread_v = block_variances(v, block_k).sum(dim=-1)[:, :, None]
    parts = []
    for rows, logits in mean_key_logits(q, k, block_k, scale, block_q):
        variance = q[:, rows].transpose(1, 2).float().square() @ spread_k
        squares = logits.softmax(dim=-1).square() * variance / (1 + variance) * spread_v
        parts.append(pool_blocks(squares.transpose(1, 2), block_q, impl="reference"))
    return torch.cat(parts, dim=2)


@torch.no_grad()
def block_variances(x: Tensor, block_size: int) -> Tensor:
    """Variance of every channel within every block of tokens: float32 ``[B, H, ceil(N / block_size), D]``.

    Args:
        x: ``[B, N, H, D]``.
        block_size: tokens per block, >= 1.
    """
    means = pool_blocks(x, block_size, impl="reference").transpose(1, 2)  # [B, n, H, D]
    batch, _, heads, dim = x.shape
    # About the mean, in float32: the difference of E[x^2] and E[x]^2 would cancel where offsets are large.
    step = max(1, CHUNK_BYTES // (4 * batch * heads * dim * block_size))
    parts = []
    for start in range(0, means.shape[1], step):
        part = x[:, start * block_size : (start + step) * block_size].float()
        own_mean = means[:, start : start + step].repeat_interleave(block_size, dim=1)[:, : part.shape[1]]
        parts.append(pool_blocks((part - own_mean).square(), block_size, impl="reference"))
    return torch.cat(parts, dim=2)


def _row_chunks(q: Tensor, block_q: int, row_bytes: int) -> Iterator[tuple[int, int, slice]]:
    """(sample, head, rows) over all rows of q, whole query blocks at a time."""
    batch, tokens, heads, _ = q.shape
    step = max(1, CHUNK_BYTES // (row_bytes * block_q)) * block_q
    for b in range(batch):
        for h in range(heads):
            for start in range(0, tokens, step):
                yield b, h, slice(start, min(start + step, tokens))


def _blockwise(x: Tensor, block: int) -> Tensor:
    """``[..., N]`` to ``[..., ceil(N / block), block]``, the end padded with zeros."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))


def _blocked_rows(x: Tensor, block: int) -> Tensor:
    """``[N, D]`` to ``[ceil(N / block), block, D]``, the end padded with zeros."""
    return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % block)).unflatten(0, (-1, block))
