# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Exact block mass in Triton: one pass over the logits of dense attention, none of which leave the chip.

A program owns ``TILE_M`` query rows of one query block, head and batch, streams all keys past them, and
writes one number per key block: the sum of exp(logit - log-sum-exp). With the log-sum-exp known beforehand
there is no running maximum and no second product, so the pass costs about half of an attention forward
(AdaSpa, arXiv 2502.21079, keeps the log-sum-exp of a dense step for this).

All heads of a run of rows are neighbours in the grid, as in :mod:`~dit_sparse.kernels.triton_pooled`. Token
and block counts are not specialised: one compilation serves every resolution.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels.triton_pooled import fitted_config, load_queries, locate, widen
from dit_sparse.kernels.triton_tiles import (
    LOG2_E,
    MIN_TILE,
    TileConfig,
    TileTable,
    float32_products,
    load_tile,
)
from dit_sparse.layout import ceil_div


@triton.jit
def _block_sum(q_tile, k, base, start, end, num_keys, stride_kn, offs_n, offs_d, scale_log2, divisor,
               D: tl.constexpr, D_PAD: tl.constexpr, TILES_K: tl.constexpr, TILE_M: tl.constexpr,
               TILE_N: tl.constexpr, MASKED: tl.constexpr, WIDEN: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """Sum over the rows and over keys ``start`` to ``end`` of exp2(logit - divisor)."""
    rows = tl.zeros([TILE_M], dtype=tl.float32)
    for tile in tl.static_range(TILES_K):
        first = start + tile * TILE_N
        keys = load_tile(k, base, first, stride_kn, offs_n, offs_d, 0, 0, num_keys,
                         TILE_N, D, D_PAD, MASKED, False, WIDEN)  # fmt: skip
        products = tl.dot(q_tile, tl.trans(keys), input_precision=PRECISION)
        shares = tl.exp2(products * scale_log2 - divisor[:, None])
        if MASKED:
            shares = tl.where(((first + offs_n) < end)[None, :], shares, 0.0)
        rows += tl.sum(shares, 1)
    return tl.sum(rows, 0)


@triton.jit(
    do_not_specialize=["num_queries", "num_keys", "num_blocks", "tiles_total", "stride_lb", "stride_lh"]
)
def _block_mass_kernel(q, k, lse, mass, scale_log2, num_queries, num_keys, num_blocks, tiles_total, heads,
                       stride_qb, stride_qn, stride_qh, stride_kb, stride_kn, stride_kh, stride_lb, stride_lh,
                       D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                       TILES: tl.constexpr, TILES_K: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
                       MASKED: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Grid (query tiles x heads, batch): what the rows of one tile add to the mean share of their query
    block.

    MASKED: key blocks are not made of whole tiles. The last block is always masked.
    """
    tile, block, h, b, offs_m, live = locate(heads, num_queries, BLOCK_Q, TILES, TILE_M)
    offs_n = tl.arange(0, TILE_N)
    offs_d = tl.arange(0, D_PAD)
    q_tile = load_queries(q, b, h, offs_m, live, offs_d, stride_qb, stride_qn, stride_qh, D, WIDEN)
    rows_lse = tl.load(lse + b * stride_lb + h * stride_lh + offs_m, mask=live, other=float("inf"))
    # The average over the block's rows is part of the divisor; rows that do not exist, or that attended to
    # nothing, divide by infinity.
    length = tl.minimum(num_queries - block * BLOCK_Q, BLOCK_Q).to(tl.float32)
    some = rows_lse > float("-inf")
    divisor = tl.where(some, rows_lse * 1.4426950408889634 + tl.log2(length), float("inf"))
    base = b * stride_kb + h * stride_kh
    target = mass + ((b * heads + h) * tiles_total + tile) * num_blocks
    for column in tl.range(0, num_blocks - 1):
        start = column * BLOCK_K
        total = _block_sum(
            q_tile, k, base, start, start + BLOCK_K, num_keys, stride_kn, offs_n, offs_d, scale_log2, divisor,
            D, D_PAD, TILES_K, TILE_M, TILE_N, MASKED, WIDEN, PRECISION,
        )  # fmt: skip
        tl.store(target + column, total)
    start = (num_blocks - 1) * BLOCK_K
    total = _block_sum(
        q_tile, k, base, start, num_keys, num_keys, stride_kn, offs_n, offs_d, scale_log2, divisor,
        D, D_PAD, TILES_K, TILE_M, TILE_N, True, WIDEN, PRECISION,
    )  # fmt: skip
    tl.store(target + num_blocks - 1, total)


# See triton_pooled. Q stays in registers or shared memory; K streams
# through as in the attention forward, without its output accumulator.
_TILES: TileTable = {
    ("hopper", 64, 2): TileConfig(128, 128, 8, 3),
    ("hopper", 128, 2): TileConfig(128, 128, 8, 3),
    ("ampere", 64, 2): TileConfig(128, 64, 4, 3),
    ("ampere", 128, 2): TileConfig(128, 64, 8, 3),
    ("small", 64, 2): TileConfig(128, 64, 4, 2),
    ("small", 128, 2): TileConfig(64, 64, 4, 2),
    ("hopper", 64, 4): TileConfig(64, 32, 4, 2),
    ("hopper", 128, 4): TileConfig(32, 32, 4, 2),
    ("ampere", 64, 4): TileConfig(64, 32, 4, 2),
    ("ampere", 128, 4): TileConfig(32, 32, 4, 2),
    ("small", 64, 4): TileConfig(32, 32, 4, 2),
    ("small", 128, 4): TileConfig(32, 32, 4, 1),
}


def block_mass_config(q: Tensor, block_q: int) -> TileConfig:
    """Tiles of :func:`block_mass` when none are given: a table look-up, nothing is timed."""
    return fitted_config(_TILES, q, block_q)


def block_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    block_size: tuple[int, int],
    *,
    scale: float,
    config: TileConfig | None = None,
) -> Tensor:
    """See :func:`dit_sparse.kernels.block_mass`; input is validated before.

    Args:
        config: overrides :func:`block_mass_config`, for tuning.
    """
    batch, num_queries, heads, dim = q.shape
    block_q, block_k = block_size
    config = config or block_mass_config(q, block_q)
    tile_n = min(config.tile_n, max(MIN_TILE, triton.next_power_of_2(block_k)))
    tiles = ceil_div(block_q, config.tile_m)
    query_blocks, num_blocks = ceil_div(num_queries, block_q), ceil_div(k.shape[1], block_k)
    if lse.stride(-1) != 1 or lse.dtype != torch.float32:
        lse = lse.float().contiguous()
    mass = torch.empty(batch, heads, query_blocks * tiles, num_blocks, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        _block_mass_kernel[(query_blocks * tiles * heads, batch)](
            q, k, lse, mass, scale * LOG2_E, num_queries, k.shape[1], num_blocks, query_blocks * tiles, heads,
            *q.stride()[:3], *k.stride()[:3], *lse.stride()[:2],
            D=dim, D_PAD=max(MIN_TILE, triton.next_power_of_2(dim)), BLOCK_Q=block_q, BLOCK_K=block_k,
            TILES=tiles, TILES_K=ceil_div(block_k, tile_n), TILE_M=config.tile_m, TILE_N=tile_n,
            MASKED=block_k % tile_n != 0, WIDEN=widen(q), PRECISION=float32_products(q),
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return mass if tiles == 1 else mass.unflatten(2, (query_blocks, tiles)).sum(dim=3)
