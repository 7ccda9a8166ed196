# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""The error of skipping each block in Triton: one pass of attention that squares every block's share.

A program owns ``TILE_M`` query rows of one head and batch, of one query block or of several whole ones,
streams all keys and values past them, and writes one number per query and key block. It forms what a block
adds to the output, ``sum_k P_k v_k``, as attention does, but starts anew at every block: it subtracts what
the block's mean key and mean value would have added, both about the row's output, and sums the squares. The
log-sum-exp and the output of dense attention are known, so there is no running maximum. The work is that of
attention, with a few D multiplications more per row and block.

Weights are rounded to the inputs' type before they meet the values, as in attention; the error of a block
that its means serve well is therefore known to about 2**-9 of what the block adds, squared.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels.triton_pooled import fitted_config, load_queries, locate, padded_means, widen
from dit_sparse.kernels.triton_tiles import (
    LOG2_E,
    MIN_TILE,
    TileConfig,
    TileTable,
    add_weighted,
    float32_products,
    load_tile,
)
from dit_sparse.layout import ceil_div


@triton.jit
def _block_error(q_tile, o_tile, k, v, k_base, v_base, mean_key, mean_value, start, end, num_keys,
                 stride_kn, stride_vn, offs_n, offs_d, scale_log2, lse_log2,
                 D: tl.constexpr, D_PAD: tl.constexpr, TILES_K: tl.constexpr, TILE_M: tl.constexpr,
                 TILE_N: tl.constexpr, GROUPS: tl.constexpr, MASKED: tl.constexpr, COMPENSATED: tl.constexpr,
                 WIDEN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Square of what the output lacks without keys ``start`` to ``end``, summed over the rows of each of
    GROUPS query blocks: ``[GROUPS]``."""
    missing = tl.zeros([TILE_M, D_PAD], dtype=tl.float32)
    weight = tl.zeros([TILE_M], dtype=tl.float32)
    for tile in tl.static_range(TILES_K):
        first = start + tile * TILE_N
        keys = load_tile(k, k_base, first, stride_kn, offs_n, offs_d, 0, 0, num_keys,
                         TILE_N, D, D_PAD, MASKED, False, WIDEN)  # fmt: skip
        products = tl.dot(q_tile, tl.trans(keys), input_precision=PRECISION)
        shares = tl.exp2(products * scale_log2 - lse_log2[:, None])
        if MASKED:
            shares = tl.where(((first + offs_n) < end)[None, :], shares, 0.0)
        weight += tl.sum(shares, 1)
        values = load_tile(v, v_base, first, stride_vn, offs_n, offs_d, 0, 0, num_keys,
                           TILE_N, D, D_PAD, MASKED, False, WIDEN)  # fmt: skip
        missing = add_weighted(missing, shares, values, WIDEN, PRECISION)
    if COMPENSATED:
        key = tl.load(mean_key + offs_d).to(tl.float32)
        value = tl.load(mean_value + offs_d).to(tl.float32)
        logit = tl.sum(q_tile.to(tl.float32) * key[None, :], 1) * scale_log2 - lse_log2
        pooled = tl.exp2(logit) * (end - start).to(tl.float32)
        missing -= pooled[:, None] * value[None, :]
        weight -= pooled
    missing -= weight[:, None] * o_tile
    return tl.sum(tl.reshape(tl.sum(missing * missing, 1), [GROUPS, TILE_M // GROUPS]), 1)


@triton.jit(do_not_specialize=["num_queries", "num_keys", "num_blocks", "tiles_total", "mean_rows",
                               "stride_lb", "stride_lh"])  # fmt: skip
def _skip_error_kernel(q, k, v, o, lse, mean_keys, mean_values, error, scale_log2,
                       num_queries, num_keys, num_blocks, tiles_total, mean_rows, heads,
                       stride_qb, stride_qn, stride_qh, stride_kb, stride_kn, stride_kh,
                       stride_vb, stride_vn, stride_vh, stride_ob, stride_on, stride_oh, stride_lb, stride_lh,
                       D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                       TILES: tl.constexpr, GROUPS: tl.constexpr, TILES_K: tl.constexpr, TILE_M: tl.constexpr,
                       TILE_N: tl.constexpr, MASKED: tl.constexpr, COMPENSATED: tl.constexpr,
                       WIDEN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Grid (query tiles x heads, batch): what the rows of one tile add to the mean errors of their query
    blocks.

    TILES: tiles of a query block; GROUPS: query blocks of a tile; one of them is 1. MASKED: key blocks are
    not made of whole tiles. The last block is always masked.
    """
    tile, block, h, b, offs_m, live = locate(heads, num_queries, BLOCK_Q * GROUPS, TILES, TILE_M)
    offs_n = tl.arange(0, TILE_N)
    offs_d = tl.arange(0, D_PAD)
    q_tile = load_queries(q, b, h, offs_m, live, offs_d, stride_qb, stride_qn, stride_qh, D, WIDEN)
    o_tile = load_queries(o, b, h, offs_m, live, offs_d, stride_ob, stride_on, stride_oh, D, WIDEN)
    o_tile = o_tile.to(tl.float32)
    # Rows that do not exist weigh nothing.
    rows_lse = tl.load(lse + b * stride_lb + h * stride_lh + offs_m, mask=live, other=float("inf"))
    lse_log2 = rows_lse * 1.4426950408889634
    groups = tl.arange(0, GROUPS)
    length = tl.minimum(num_queries - (block * GROUPS + groups) * BLOCK_Q, BLOCK_Q)
    length = tl.maximum(length, 1).to(tl.float32)
    k_base = b * stride_kb + h * stride_kh
    v_base = b * stride_vb + h * stride_vh
    head = b * heads + h
    mean_keys += head * mean_rows * D_PAD
    mean_values += head * mean_rows * D_PAD
    rows = tile * GROUPS + groups
    target = error + (head * tiles_total + rows.to(tl.int64)) * num_blocks
    exists = rows < tiles_total
    for column in tl.range(0, num_blocks - 1):
        start = column * BLOCK_K
        total = _block_error(
            q_tile, o_tile, k, v, k_base, v_base, mean_keys + column * D_PAD, mean_values + column * D_PAD,
            start, start + BLOCK_K, num_keys, stride_kn, stride_vn, offs_n, offs_d, scale_log2, lse_log2,
            D, D_PAD, TILES_K, TILE_M, TILE_N, GROUPS, MASKED, COMPENSATED, WIDEN, PRECISION,
        )  # fmt: skip
        tl.store(target + column, total / length, mask=exists)
    last = num_blocks - 1
    total = _block_error(
        q_tile, o_tile, k, v, k_base, v_base, mean_keys + last * D_PAD, mean_values + last * D_PAD,
        last * BLOCK_K, num_keys, num_keys, stride_kn, stride_vn, offs_n, offs_d, scale_log2, lse_log2,
        D, D_PAD, TILES_K, TILE_M, TILE_N, GROUPS, True, COMPENSATED, WIDEN, PRECISION,
    )  # fmt: skip
    tl.store(target + last, total / length, mask=exists)


# See triton_pooled: those of the attention forward, with room for
# the rows' output.
_TILES: TileTable = {
    ("hopper", 64, 2): TileConfig(128, 64, 8, 3),
    ("hopper", 128, 2): TileConfig(128, 64, 8, 3),
    ("ampere", 64, 2): TileConfig(128, 64, 8, 2),
    ("ampere", 128, 2): TileConfig(64, 64, 4, 2),
    ("small", 64, 2): TileConfig(64, 64, 4, 2),
    ("small", 128, 2): TileConfig(64, 32, 4, 2),
    ("hopper", 64, 4): TileConfig(32, 32, 4, 2),
    ("hopper", 128, 4): TileConfig(32, 32, 4, 1),
    ("ampere", 64, 4): TileConfig(32, 32, 4, 2),
    ("ampere", 128, 4): TileConfig(32, 32, 4, 1),
    ("small", 64, 4): TileConfig(32, 32, 4, 1),
    ("small", 128, 4): TileConfig(16, 32, 4, 1),
}


LONGEST = 128
"""Rows of the largest tile."""


def skip_error_config(q: Tensor, block_q: int) -> TileConfig:
    """Tiles of :func:`skip_error` when none are given: a table look-up, nothing is timed.

    A tile takes several query blocks where they are short: tensor cores want many rows.
    """
    whole = block_q & (block_q - 1) == 0
    return fitted_config(_TILES, q, max(block_q, LONGEST) if whole else block_q)


def skip_error(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    block_size: tuple[int, int],
    *,
    scale: float,
    compensated: bool = True,
    config: TileConfig | None = None,
) -> Tensor:
    """See :func:`dit_sparse.kernels.skip_error`; input is validated before.

    Args:
        config: overrides :func:`skip_error_config`, for tuning.
    """
    batch, num_queries, heads, dim = q.shape
    block_q, block_k = block_size
    config = config or skip_error_config(q, block_q)
    tile_n = min(config.tile_n, max(MIN_TILE, triton.next_power_of_2(block_k)))
    tiles = ceil_div(block_q, config.tile_m)
    groups = 1 if config.tile_m % block_q else config.tile_m // block_q
    query_blocks, num_blocks = ceil_div(num_queries, block_q), ceil_div(k.shape[1], block_k)
    if lse.stride(-1) != 1 or lse.dtype != torch.float32:
        lse = lse.float().contiguous()
    keys, values = padded_means((k, v), block_k)
    error = torch.empty(batch, heads, query_blocks * tiles, num_blocks, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        _skip_error_kernel[(ceil_div(query_blocks * tiles, groups) * heads, batch)](
            q, k, v, out, lse, keys, values, error, scale * LOG2_E,
            num_queries, k.shape[1], num_blocks, query_blocks * tiles, keys.shape[2], heads,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *lse.stride()[:2],
            D=dim, D_PAD=keys.shape[-1], BLOCK_Q=block_q, BLOCK_K=block_k,
            TILES=tiles, GROUPS=groups, TILES_K=ceil_div(block_k, tile_n), TILE_M=config.tile_m,
            TILE_N=tile_n, MASKED=block_k % tile_n != 0, COMPENSATED=compensated, WIDEN=widen(q),
            PRECISION=float32_products(q), num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return error if tiles == 1 else error.unflatten(2, (query_blocks, tiles)).sum(dim=3)
