# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Block means and mean-key mass in Triton, and what the other kernels of mean keys share.

All are 1 / (key block) of dense attention, so what counts is to read every token once and to keep the
``[N, nK]`` logits on the chip. One program of mass takes ``TILE_M`` query rows of one query block, head and
batch, and streams tiles of mean keys past them: a first pass for the rows' log-sum-exp (online softmax in
base 2; FlashAttention-2, arXiv:2307.08691), a second for the sum over rows of exp(logit - log-sum-exp). The
second forms the transposed logits, so that the sum over queries stays within a warp.

Means are accumulated in float32 and stored in the inputs' dtype for the tensor cores: a bfloat16 mean moves a
logit by at most ``scale * 2**-8 * sum_d |q_d mean_d|``, as the rounding of k itself does. Mass pads them with
zeros to whole tiles, so that its loops load them without masks. All heads of a run of tokens are neighbours
in the grid: together they read whole rows of ``[B, N, H, D]``. Token and block counts are not specialised:
one compilation serves every resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    float32_products,
    gpu_class,
)
from dit_sparse.layout import ceil_div

POOL_BYTES = 32 * 1024
"""What one step of the pooling kernel loads of a tensor: a whole block of 128 tokens with heads of 128."""


@triton.jit
def _load_rows(x, b64, h64, stride_b, stride_n, stride_h, tokens, live, offs_d):
    """``[ROWS, D_PAD]`` of one head; zeros where there is no row or no column."""
    pointers = x + b64 * stride_b + h64 * stride_h + tokens.to(tl.int64)[:, None] * stride_n + offs_d[None, :]
    return tl.load(pointers, mask=live, other=0.0)


@triton.jit(do_not_specialize=["tokens", "rows_out"])
def _pool_kernel(x0, x1, out0, out1, tokens, heads, rows_out,
                 stride_0b, stride_0n, stride_0h, stride_1b, stride_1n, stride_1h,
                 D: tl.constexpr, D_OUT: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
                 ROWS: tl.constexpr, COUNT: tl.constexpr):  # fmt: skip
    """Grid (rows_out x heads, batch): one mean of each of COUNT tensors, 1 or 2, whose loads are in flight at
    once. Rows behind the last block and columns behind the head size become zeros."""
    block = tl.program_id(0) // heads
    h = tl.program_id(0) % heads
    b64 = tl.program_id(1).to(tl.int64)
    h64 = h.to(tl.int64)
    start = block * BLOCK
    length = tl.minimum(tokens - start, BLOCK)
    offs_n = tl.arange(0, ROWS)
    offs_d = tl.arange(0, D_PAD)
    total0 = tl.zeros([D_PAD], dtype=tl.float32)
    total1 = tl.zeros([D_PAD], dtype=tl.float32)
    for step in tl.range(0, length, ROWS):
        rows = step + offs_n
        live = (rows < length)[:, None] & (offs_d < D)[None, :]
        tile0 = _load_rows(x0, b64, h64, stride_0b, stride_0n, stride_0h, start + rows, live, offs_d)
        if COUNT > 1:
            tile1 = _load_rows(x1, b64, h64, stride_1b, stride_1n, stride_1h, start + rows, live, offs_d)
            total1 += tl.sum(tile1.to(tl.float32), 0)
        total0 += tl.sum(tile0.to(tl.float32), 0)
    divisor = tl.maximum(length, 1).to(tl.float32)
    target = ((b64 * heads + h64) * rows_out + block) * D_OUT + offs_d
    tl.store(out0 + target, (total0 / divisor).to(out0.dtype.element_ty), mask=offs_d < D_OUT)
    if COUNT > 1:
        tl.store(out1 + target, (total1 / divisor).to(out1.dtype.element_ty), mask=offs_d < D_OUT)


@triton.jit
def _length_bias(columns, num_blocks, last_bias):
    """What a block's length adds to its logit: 0 but for a ragged last block; -inf behind the last block."""
    bias = tl.where(columns == num_blocks - 1, last_bias, 0.0)
    return tl.where(columns < num_blocks, bias, float("-inf"))


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
def load_means(means, columns, offs_d, D_PAD: tl.constexpr, WIDEN: tl.constexpr):
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


@triton.jit
def _total_step(q_tile, keys, start, offs_n, offs_d, num_blocks, last_bias, scale_log2, peak, total,
                D_PAD: tl.constexpr, LAST: tl.constexpr, WIDEN: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """First pass of mass over one tile of keys: (peak, total) of every row.

    Only the LAST tile has a bias, given in units of products.
    """
    columns = start + offs_n
    k = load_means(keys, columns, offs_d, D_PAD, WIDEN)
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
    k = load_means(keys, columns, offs_d, D_PAD, WIDEN)
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


# Whole query blocks on Hopper: every tile of means comes from the L2 cache, 2 tile_m flops per byte, so 64
# rows would be bound by its bandwidth. Before it, every warp holds the transposed queries in registers: few
# rows fit.
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


def mass_config(q: Tensor, block_q: int) -> TileConfig:
    """Tiles of :func:`mass` when none are given: a table look-up, nothing is timed."""
    return fitted_config(_MASS_TILES, q, block_q)


def widen(x: Tensor) -> bool:
    """Triton's interpreter multiplies the bit patterns of bfloat16, so it gets exact float32 copies."""
    return x.dtype == torch.bfloat16 and not x.is_cuda


def _pool(tensors: Sequence[Tensor], block_size: int, out: Sequence[Tensor]) -> None:
    """Block means of one or two ``[B, N, H, D]`` into contiguous ``[B, H, rows, columns]``, zeros beyond
    both."""
    first = tensors[0]
    batch, tokens, heads, dim = first.shape
    rows_out, dim_out = out[0].shape[2:]
    dim_pad = triton.next_power_of_2(dim_out)
    rows = min(triton.next_power_of_2(block_size), max(1, POOL_BYTES // (dim_pad * first.element_size())))
    with torch.cuda.device_of(first):
        _pool_kernel[(rows_out * heads, batch)](
            first, tensors[-1], out[0], out[-1], tokens, heads, rows_out,
            *first.stride()[:3], *tensors[-1].stride()[:3],
            D=dim, D_OUT=dim_out, D_PAD=dim_pad, BLOCK=block_size, ROWS=rows, COUNT=len(tensors),
        )  # fmt: skip


def pool(x: Tensor, block_size: int) -> Tensor:
    """See :func:`dit_sparse.kernels.pool_blocks`."""
    batch, tokens, heads, dim = x.shape
    out = torch.empty(batch, heads, ceil_div(tokens, block_size), dim, dtype=torch.float32, device=x.device)
    _pool((x,), block_size, (out,))
    return out


def padded_means(tensors: Sequence[Tensor], block_size: int, tile_n: int = 1) -> list[Tensor]:
    """Block means in the dtype of the tensors: ``[B, H, rows, D_PAD]`` each, padded with zeros to whole tiles
    of ``tile_n`` blocks and to a power of 2.

    Args:
        tensors: one or two ``[B, N, H, D]`` of one shape and dtype, any strides.
        block_size: tokens per block.
        tile_n: of how many means the rows are a multiple.
    """
    batch, tokens, heads, dim = tensors[0].shape
    rows = ceil_div(ceil_div(tokens, block_size), tile_n) * tile_n
    shape = (batch, heads, rows, max(MIN_TILE, triton.next_power_of_2(dim)))
    # Where widened, the interpreter would truncate what a GPU rounds.
    dtype = torch.float32 if widen(tensors[0]) else tensors[0].dtype
    out = [torch.empty(shape, dtype=dtype, device=x.device) for x in tensors]
    _pool(tensors, block_size, out)
    return [means.to(tensors[0].dtype) for means in out]


def last_log2(num_keys: int, block_k: int) -> float:
    """log2(tokens of the last key block / key block)."""
    return math.log2((num_keys - (ceil_div(num_keys, block_k) - 1) * block_k) / block_k)


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
    (keys,) = padded_means((k,), block_k, config.tile_n)
    query_blocks, num_blocks = ceil_div(num_queries, block_q), ceil_div(k.shape[1], block_k)
    scale_log2 = scale * LOG2_E
    shares = torch.empty(batch, heads, query_blocks * tiles, num_blocks, dtype=torch.float32, device=q.device)
    with torch.cuda.device_of(q):
        _mass_kernel[(query_blocks * tiles * heads, batch)](
            q, keys, shares, scale_log2, last_log2(k.shape[1], block_k) / scale_log2,
            num_queries, num_blocks, query_blocks * tiles, heads, *q.stride()[:3],
            D=dim, D_PAD=keys.shape[-1], BLOCK_Q=block_q, TILES=tiles, TILE_M=config.tile_m,
            TILE_N=config.tile_n, WIDEN=widen(q), PRECISION=float32_products(q),
            **config.launch_options(),
        )  # fmt: skip
    return shares if tiles == 1 else shares.unflatten(2, (query_blocks, tiles)).sum(dim=3)
