# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Queries against mean keys in Triton: pooling, compensation of skipped blocks, and mean-key mass.

All three are 1 / (key block) of dense attention, so what counts is to read every token once and to keep the
``[N, nK]`` logits on the chip. Both attention kernels give one program ``TILE_M`` query rows of one query
block, head and batch, and stream tiles of mean keys past them:

- Compensation: online softmax in base 2 (FlashAttention-2, arXiv:2307.08691) over the blocks that the row
  skips, and, as its epilogue, the merge with the sparse output by log-sum-exp (SVG-EAR, arXiv 2603.08982).
- Mass: a first pass for the rows' log-sum-exp, a second for the sum over rows of exp(logit - log-sum-exp).
  The second forms the transposed logits, so that the sum over queries stays within a warp.

Means are accumulated in float32 and stored in the inputs' dtype for the tensor cores: a bfloat16 mean moves a
logit by at most ``scale * 2**-8 * sum_d |q_d mean_d|``, as the rounding of k itself does. They are padded
with zeros to whole tiles, so the loops load them without masks. All heads of a run of tokens are neighbours
in the grid: together they read whole rows of ``[B, N, H, D]``. Token and block counts are not specialised:
one compilation serves every resolution.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels.triton_tiles import (
    LOG2_E,
    MIN_TILE,
    TileConfig,
    TileTable,
    add_weighted,
    float32_products,
    gpu_class,
    normalise,
)
from dit_sparse.layout import BlockMap, ceil_div

POOL_TILE = 8192
"""Elements that one step of the pooling kernel loads: 16 bytes in flight per thread, eight times."""
BIAS_TILE = 256
"""Entries that one step of the bias kernel moves."""


@triton.jit(do_not_specialize=["tokens", "rows_out"])
def _pool_kernel(x, out, tokens, heads, rows_out, stride_xb, stride_xn, stride_xh,
                 D: tl.constexpr, D_OUT: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
                 ROWS: tl.constexpr):  # fmt: skip
    """Grid (rows_out x heads, batch). Rows behind the last block and columns behind the head size become
    zeros."""
    block = tl.program_id(0) // heads
    h = tl.program_id(0) % heads
    b64 = tl.program_id(1).to(tl.int64)
    h64 = h.to(tl.int64)
    start = block * BLOCK
    length = tl.minimum(tokens - start, BLOCK)
    offs_n = tl.arange(0, ROWS)
    offs_d = tl.arange(0, D_PAD)
    base = x + b64 * stride_xb + h64 * stride_xh + start.to(tl.int64) * stride_xn
    total = tl.zeros([D_PAD], dtype=tl.float32)
    for step in tl.range(0, length, ROWS):
        rows = step + offs_n
        live = (rows < length)[:, None] & (offs_d < D)[None, :]
        tile = tl.load(base + rows.to(tl.int64)[:, None] * stride_xn + offs_d[None, :], mask=live, other=0.0)
        total += tl.sum(tile.to(tl.float32), 0)
    mean = total / tl.maximum(length, 1).to(tl.float32)
    row = ((b64 * heads + h64) * rows_out + block) * D_OUT
    tl.store(out + row + offs_d, mean.to(out.dtype.element_ty), mask=offs_d < D_OUT)


@triton.jit
def _length_bias(columns, num_blocks, last_bias):
    """What a block's length adds to its logit: 0 but for a ragged last block; -inf behind the last block."""
    bias = tl.where(columns == num_blocks - 1, last_bias, 0.0)
    return tl.where(columns < num_blocks, bias, float("-inf"))


@triton.jit(do_not_specialize=["num_blocks", "mean_rows", "stride_ib", "stride_ih", "stride_iq",
                               "stride_cb", "stride_ch", "stride_cq"])  # fmt: skip
def _bias_kernel(indices, counts, bias, last_bias, num_blocks, mean_rows, stride_ib, stride_ih, stride_iq,
                 stride_cb, stride_ch, stride_cq, TILE: tl.constexpr):  # fmt: skip
    """Grid (query blocks, heads, batch): one row of what is added to the logits. Reads live indices only."""
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    count = tl.load(counts + b * stride_cb + h * stride_ch + row * stride_cq)
    source = indices + b * stride_ib + h * stride_ih + row * stride_iq
    target = bias + ((b * tl.num_programs(1) + h) * tl.num_programs(0) + row) * mean_rows
    for start in tl.range(0, mean_rows, TILE):
        columns = start + tl.arange(0, TILE)
        tl.store(target + columns, _length_bias(columns, num_blocks, last_bias), mask=columns < mean_rows)
    tl.debug_barrier()  # other threads of this program overwrite what was just written
    for start in tl.range(0, count, TILE):
        offs = start + tl.arange(0, TILE)
        block = tl.load(source + offs, mask=offs < count, other=0)
        tl.store(target + block, tl.full([TILE], float("-inf"), dtype=tl.float32), mask=offs < count)


@triton.jit
def locate(heads, num_queries, BLOCK_Q: tl.constexpr, TILES: tl.constexpr, TILE_M: tl.constexpr):
    """(tile, query block, head, batch) of this program, its rows, and which of them exist.

    Tiles never straddle query blocks: all rows of a program share one row of the block map.
    """
    tile = tl.program_id(0) // heads
    block = tile // TILES
    offs_m = block * BLOCK_Q + (tile % TILES) * TILE_M + tl.arange(0, TILE_M)
    live = offs_m < tl.minimum(num_queries, (block + 1) * BLOCK_Q)
    return tile, block, (tl.program_id(0) % heads).to(tl.int64), tl.program_id(1).to(tl.int64), offs_m, live


@triton.jit
def load_queries(q, b, h, offs_m, live, offs_d, stride_qb, stride_qn, stride_qh,
                  D: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """``[TILE_M, D_PAD]``; zeros where there is no row or no column."""
    pointers = q + b * stride_qb + h * stride_qh + offs_m.to(tl.int64)[:, None] * stride_qn + offs_d[None, :]
    tile = tl.load(pointers, mask=live[:, None] & (offs_d < D)[None, :], other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _load_means(means, columns, offs_d, D_PAD: tl.constexpr, WIDEN: tl.constexpr):
    """``[TILE_N, D_PAD]`` mean keys or values of one head."""
    tile = tl.load(means + columns[:, None] * D_PAD + offs_d[None, :])
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _softmax_step(products, scale_log2, peak, total):
    """One online-softmax step: (weights, decay of what came before, peak, total).

    Logits in base 2 are products times the scale.

    ``peak`` starts at a finite number far below any logit, so that a tile whose products are all -inf gives
    zeros instead of NaN.
    """
    new_peak = tl.maximum(peak, tl.max(products, 1) * scale_log2)
    weights = tl.exp2(products * scale_log2 - new_peak[:, None])
    decay = tl.exp2(peak - new_peak)
    return weights, decay, new_peak, total * decay + tl.sum(weights, 1)


@triton.jit(do_not_specialize=["num_queries", "query_blocks", "mean_tiles", "stride_lb", "stride_lh"])
def _compensation_kernel(q, keys, values, bias, first, lse, out, scale_log2, block_log2,
                         num_queries, query_blocks, mean_tiles, heads,
                         stride_qb, stride_qn, stride_qh, stride_fb, stride_fn, stride_fh,
                         stride_ob, stride_on, stride_oh, stride_lb, stride_lh,
                         D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, TILES: tl.constexpr,
                         TILE_M: tl.constexpr, TILE_N: tl.constexpr, MERGE: tl.constexpr,
                         WIDEN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Grid (query tiles x heads, batch).

    With MERGE, ``first`` and ``lse`` are the sparse output and its log-sum-exp, and ``out`` gets the union.
    Without, ``out`` and ``lse`` get the attention to the means alone.
    """
    _tile, block, h, b, offs_m, live = locate(heads, num_queries, BLOCK_Q, TILES, TILE_M)
    offs_d = tl.arange(0, D_PAD)
    q_tile = load_queries(q, b, h, offs_m, live, offs_d, stride_qb, stride_qn, stride_qh, D, WIDEN)
    mean_rows = mean_tiles * TILE_N
    head = b * heads + h
    keys += head * mean_rows * D_PAD
    values += head * mean_rows * D_PAD
    bias += (head * query_blocks + block) * mean_rows

    acc = tl.zeros([TILE_M, D_PAD], dtype=tl.float32)
    total = tl.zeros([TILE_M], dtype=tl.float32)
    peak = tl.full([TILE_M], -1.0e30, dtype=tl.float32)
    for start in tl.range(0, mean_rows, TILE_N):
        columns = start + tl.arange(0, TILE_N)
        k = _load_means(keys, columns, offs_d, D_PAD, WIDEN)
        # Scaled before the bias is added: as the start of the sum, its load would hold up the product.
        logits = tl.dot(q_tile, tl.trans(k), input_precision=PRECISION) * scale_log2
        logits += tl.load(bias + columns)[None, :]
        weights, decay, peak, total = _softmax_step(logits, 1.0, peak, total)
        v = _load_means(values, columns, offs_d, D_PAD, WIDEN)
        acc = add_weighted(acc * decay[:, None], weights, v, WIDEN, PRECISION)

    # A block of n equal keys is n keys: the logits above lack its log2(n), the same for all full blocks.
    acc, pooled_lse = normalise(acc, total, peak + block_log2)
    rows = offs_m.to(tl.int64)
    mask = live[:, None] & (offs_d < D)[None, :]
    lse_pointers = lse + b * stride_lb + h * stride_lh + rows
    if MERGE:
        first_lse = tl.load(lse_pointers, mask=live, other=float("-inf"))
        top = tl.maximum(tl.maximum(first_lse, pooled_lse), -1.0e30)
        first_weight = tl.exp(first_lse - top)
        weight = first_weight + tl.exp(pooled_lse - top)
        # Exactly 1 where nothing was skipped: the sparse output passes unchanged.
        share = first_weight / tl.where(weight > 0, weight, 1.0)
        first_pointers = first + b * stride_fb + h * stride_fh + rows[:, None] * stride_fn + offs_d[None, :]
        given = tl.load(first_pointers, mask=mask, other=0.0).to(tl.float32)
        acc = given * share[:, None] + acc * (1.0 - share)[:, None]
    else:
        tl.store(lse_pointers, pooled_lse, mask=live)
    out_pointers = out + b * stride_ob + h * stride_oh + rows[:, None] * stride_on + offs_d[None, :]
    tl.store(out_pointers, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _total_step(q_tile, keys, start, offs_n, offs_d, num_blocks, last_bias, scale_log2, peak, total,
                D_PAD: tl.constexpr, LAST: tl.constexpr, WIDEN: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """First pass of mass over one tile of keys: (peak, total) of every row.

    Only the LAST tile has a bias, given in units of products.
    """
    columns = start + offs_n
    k = _load_means(keys, columns, offs_d, D_PAD, WIDEN)
    products = tl.dot(q_tile, tl.trans(k), input_precision=PRECISION)
    if LAST:
        products += _length_bias(columns, num_blocks, last_bias)[None, :]
    _weights, _decay, peak, total = _softmax_step(products, scale_log2, peak, total)
    return peak, total


@triton.jit
def _share_step(q_transposed, keys, mass, start, offs_n, offs_d, num_blocks, last_bias, scale_log2, divisor,
                D_PAD: tl.constexpr, LAST: tl.constexpr, WIDEN: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """Second pass over one tile of keys: writes the sum over rows of exp2(logit - divisor)."""
    columns = start + offs_n
    k = _load_means(keys, columns, offs_d, D_PAD, WIDEN)
    products = tl.dot(k, q_transposed, input_precision=PRECISION)
    if LAST:
        products += _length_bias(columns, num_blocks, last_bias)[:, None]
    shares = tl.sum(tl.exp2(products * scale_log2 - divisor), 1)
    tl.store(mass + columns, shares, mask=columns < num_blocks)


@triton.jit(do_not_specialize=["num_queries", "num_blocks", "tiles_total"])
def _mass_kernel(q, keys, mass, scale_log2, last_bias, num_queries, num_blocks, tiles_total, heads,
                 stride_qb, stride_qn, stride_qh,
                 D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, TILES: tl.constexpr,
                 TILE_M: tl.constexpr, TILE_N: tl.constexpr, WIDEN: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Grid (query tiles x heads, batch): what the rows of one tile add to the mean share of their query
    block."""
    tile, block, h, b, offs_m, live = locate(heads, num_queries, BLOCK_Q, TILES, TILE_M)
    offs_n = tl.arange(0, TILE_N)
    offs_d = tl.arange(0, D_PAD)
    q_tile = load_queries(q, b, h, offs_m, live, offs_d, stride_qb, stride_qn, stride_qh, D, WIDEN)
    head = b * heads + h
    keys += head * tl.cdiv(num_blocks, TILE_N) * TILE_N * D_PAD
    mass += (head * tiles_total + tile) * num_blocks
    last_start = (num_blocks - 1) // TILE_N * TILE_N

    total = tl.zeros([TILE_M], dtype=tl.float32)
    peak = tl.full([TILE_M], -1.0e30, dtype=tl.float32)
    for start in tl.range(0, last_start, TILE_N):
        peak, total = _total_step(
            q_tile, keys, start, offs_n, offs_d, num_blocks, last_bias, scale_log2, peak, total,
            D_PAD, False, WIDEN, PRECISION,
        )  # fmt: skip
    peak, total = _total_step(
        q_tile, keys, last_start, offs_n, offs_d, num_blocks, last_bias, scale_log2, peak, total,
        D_PAD, True, WIDEN, PRECISION,
    )  # fmt: skip

    # The average over the block's rows is part of the divisor; rows that do not exist divide by infinity.
    length = tl.minimum(num_queries - block * BLOCK_Q, BLOCK_Q).to(tl.float32)
    divisor = tl.where(live, peak + tl.log2(total) + tl.log2(length), float("inf"))[None, :]
    q_transposed = tl.trans(q_tile)
    for start in tl.range(0, last_start, TILE_N):
        _share_step(
            q_transposed, keys, mass, start, offs_n, offs_d, num_blocks, last_bias, scale_log2, divisor,
            D_PAD, False, WIDEN, PRECISION,
        )  # fmt: skip
    _share_step(
        q_transposed, keys, mass, last_start, offs_n, offs_d, num_blocks, last_bias, scale_log2, divisor,
        D_PAD, True, WIDEN, PRECISION,
    )  # fmt: skip


# Every tile of means comes from the L2 cache, 2 tile_m flops per byte, so 64 rows would be bound by its
# bandwidth on Hopper. Two or three programs share a multiprocessor and hide each other's first loads. The
# 16-bit entries of Hopper were the fastest of ``gpu_check.py --bench tune_pooled`` on an H200; the others
# were chosen by what the compiler makes of them.
_COMPENSATION_TILES: TileTable = {
    ("hopper", 64, 2): TileConfig(128, 64, 8, 2),
    ("hopper", 128, 2): TileConfig(128, 64, 8, 2, registers=128),
    ("ampere", 64, 2): TileConfig(128, 64, 8, 2),
    ("ampere", 128, 2): TileConfig(128, 64, 8, 2),
    ("small", 64, 2): TileConfig(128, 64, 8, 2),
    ("small", 128, 2): TileConfig(128, 32, 8, 2),
    ("hopper", 64, 4): TileConfig(32, 32, 4, 2),
    ("hopper", 128, 4): TileConfig(32, 32, 4, 2),
    ("ampere", 64, 4): TileConfig(32, 32, 4, 2),
    ("ampere", 128, 4): TileConfig(32, 32, 4, 2),
    ("small", 64, 4): TileConfig(32, 32, 4, 2),
    ("small", 128, 4): TileConfig(32, 32, 4, 1),
}
# Whole query blocks on Hopper. Before it, every warp holds the transposed queries in registers: few rows fit.
_MASS_TILES: TileTable = {
    ("hopper", 64, 2): TileConfig(128, 64, 4, 3),
    ("hopper", 128, 2): TileConfig(128, 64, 4, 2),
    ("ampere", 64, 2): TileConfig(64, 64, 4, 2),
    ("ampere", 128, 2): TileConfig(32, 64, 4, 2),
    ("small", 64, 2): TileConfig(64, 64, 4, 2),
    ("small", 128, 2): TileConfig(32, 64, 4, 2),
    ("hopper", 64, 4): TileConfig(16, 32, 4, 2),
    ("hopper", 128, 4): TileConfig(16, 32, 4, 2),
    ("ampere", 64, 4): TileConfig(16, 32, 4, 2),
    ("ampere", 128, 4): TileConfig(16, 32, 4, 2),
    ("small", 64, 4): TileConfig(16, 32, 4, 2),
    ("small", 128, 4): TileConfig(16, 32, 4, 1),
}


def fitted_config(table: TileTable, q: Tensor, block_q: int) -> TileConfig:
    """The table's entry, made smaller where a query block has fewer rows."""
    config = table[gpu_class(q.device), 64 if q.shape[-1] <= 64 else 128, q.dtype.itemsize]
    tile_m = max(MIN_TILE, triton.next_power_of_2(block_q))
    if tile_m >= config.tile_m:
        return config
    return replace(config, tile_m=tile_m, tile_n=min(config.tile_n, 64), num_warps=4, registers=None)


def compensation_config(q: Tensor, block_q: int) -> TileConfig:
    """Tiles of :func:`attend` when none are given: a table look-up, nothing is timed."""
    return fitted_config(_COMPENSATION_TILES, q, block_q)


def mass_config(q: Tensor, block_q: int) -> TileConfig:
    """Tiles of :func:`mass` when none are given: a table look-up, nothing is timed."""
    return fitted_config(_MASS_TILES, q, block_q)


def widen(x: Tensor) -> bool:
    """Triton's interpreter multiplies the bit patterns of bfloat16, so it gets exact float32 copies."""
    return x.dtype == torch.bfloat16 and not x.is_cuda


def _pool(x: Tensor, block_size: int, out: Tensor) -> Tensor:
    """Block means of ``x [B, N, H, D]`` into contiguous ``out [B, H, rows, columns]``, zeros beyond both."""
    batch, tokens, heads, dim = x.shape
    rows_out, dim_out = out.shape[2:]
    dim_pad = triton.next_power_of_2(dim_out)
    rows = min(triton.next_power_of_2(block_size), max(1, POOL_TILE // dim_pad))
    with torch.cuda.device_of(x):
        _pool_kernel[(rows_out * heads, batch)](
            x, out, tokens, heads, rows_out, *x.stride()[:3],
            D=dim, D_OUT=dim_out, D_PAD=dim_pad, BLOCK=block_size, ROWS=rows,
        )  # fmt: skip
    return out


def pool(x: Tensor, block_size: int) -> Tensor:
    """See :func:`dit_sparse.kernels.pool_blocks`."""
    batch, tokens, heads, dim = x.shape
    shape = (batch, heads, ceil_div(tokens, block_size), dim)
    return _pool(x, block_size, torch.empty(shape, dtype=torch.float32, device=x.device))


def padded_means(x: Tensor, block_size: int, tile_n: int) -> Tensor:
    """Block means in the dtype of ``x``: ``[B, H, rows, D_PAD]``, both padded with zeros to whole tiles."""
    batch, tokens, heads, dim = x.shape
    rows = ceil_div(ceil_div(tokens, block_size), tile_n) * tile_n
    shape = (batch, heads, rows, max(MIN_TILE, triton.next_power_of_2(dim)))
    if widen(x):  # the interpreter would truncate where a GPU rounds
        return _pool(x, block_size, torch.empty(shape, device=x.device)).to(x.dtype)
    return _pool(x, block_size, torch.empty(shape, dtype=x.dtype, device=x.device))


def _last_log2(num_keys: int, block_k: int) -> float:
    """log2(tokens of the last key block / key block)."""
    return math.log2((num_keys - (ceil_div(num_keys, block_k) - 1) * block_k) / block_k)


def _bias(block_map: BlockMap, columns: int) -> Tensor:
    """What is added to logits in base 2, float32 ``[B, H, nQ, columns]``.

    -inf where a pair is kept and behind the last block, else 0, or what a ragged last block's length asks
    for.
    """
    batch, heads, query_blocks, num_blocks = block_map.shape
    indices, counts = block_map.indices, block_map.counts
    if indices.stride(-1) != 1:
        indices = indices.contiguous()
    bias = torch.empty(batch, heads, query_blocks, columns, dtype=torch.float32, device=indices.device)
    last_bias = _last_log2(block_map.num_keys, block_map.block_size[1])
    with torch.cuda.device_of(bias):
        _bias_kernel[(query_blocks, heads, batch)](
            indices, counts, bias, last_bias, num_blocks, columns, *indices.stride()[:3], *counts.stride(),
            TILE=BIAS_TILE, num_warps=2,
        )  # fmt: skip
    return bias


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    scale: float,
    first: tuple[Tensor, Tensor] | None = None,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention to the means of skipped blocks, or its union with ``first``; input is validated before.

    Args:
        first: sparse output ``[B, Nq, H, D]`` and its log-sum-exp, float32 ``[B, H, Nq]``.
        config: overrides :func:`compensation_config`, for tuning.

    Returns:
        Without ``first``: see :func:`dit_sparse.kernels.pooled_attention`. With it: the merged output,
        contiguous in the dtype of ``first``, and its unchanged log-sum-exp.
    """
    batch, num_queries, heads, dim = q.shape
    block_q, block_k = block_map.block_size
    config = config or compensation_config(q, block_q)
    tiles = ceil_div(block_q, config.tile_m)
    keys, values = (padded_means(x, block_k, config.tile_n) for x in (k, v))
    bias = _bias(block_map, keys.shape[2])
    if first is None:
        sparse, merge = None, False
        out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.empty(batch, heads, num_queries, dtype=torch.float32, device=q.device)
    else:
        (sparse, lse), merge = first, True
        out = torch.empty(q.shape, dtype=sparse.dtype, device=q.device)
        if lse.stride(-1) != 1:
            lse = lse.contiguous()
    query_blocks = block_map.shape[2]
    with torch.cuda.device_of(q):
        _compensation_kernel[(query_blocks * tiles * heads, batch)](
            q, keys, values, bias, sparse, lse, out, scale * LOG2_E, math.log2(block_k),
            num_queries, query_blocks, keys.shape[2] // config.tile_n, heads,
            *q.stride()[:3], *(out if sparse is None else sparse).stride()[:3], *out.stride()[:3],
            *lse.stride()[:2],
            D=dim, D_PAD=keys.shape[-1], BLOCK_Q=block_q, TILES=tiles, TILE_M=config.tile_m,
            TILE_N=config.tile_n, MERGE=merge, WIDEN=widen(q), PRECISION=float32_products(q),
            **config.launch_options(),
        )  # fmt: skip
    return out, lse


def mass(
    q: Tensor, k: Tensor, block_size: tuple[int, int], *, scale: float, config: TileConfig | None = None
) -> Tensor:
    """See :func:`dit_sparse.kernels.mean_key_mass`; input is validated before.

    Args:
        config: overrides :func:`mass_config`, for tuning.
    """
    batch, num_queries, heads, dim = q.shape
    block_q, block_k = block_size
    config = config or mass_config(q, block_q)
    tiles = ceil_div(block_q, config.tile_m)
    keys = padded_means(k, block_k, config.tile_n)
    query_blocks, num_blocks = ceil_div(num_queries, block_q), ceil_div(k.shape[1], block_k)
    scale_log2 = scale * LOG2_E
    shares = torch.empty(batch, heads, query_blocks * tiles, num_blocks, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        _mass_kernel[(query_blocks * tiles * heads, batch)](
            q, keys, shares, scale_log2, _last_log2(k.shape[1], block_k) / scale_log2,
            num_queries, num_blocks, query_blocks * tiles, heads, *q.stride()[:3],
            D=dim, D_PAD=keys.shape[-1], BLOCK_Q=block_q, TILES=tiles, TILE_M=config.tile_m,
            TILE_N=config.tile_n, WIDEN=widen(q), PRECISION=float32_products(q),
            **config.launch_options(),
        )  # fmt: skip
    return shares if tiles == 1 else shares.unflatten(2, (query_blocks, tiles)).sum(dim=3)
