# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Attention to the means of skipped blocks in Triton, merged with the sparse output.

One program takes ``TILE_M`` query rows of one query block, head and batch, and streams the means of the
blocks that the block skips past them: the complement of its row of the block map, which a small kernel lists
first. A quarter of the products less, at density 0.25, than with all means and a bias of -inf on the kept
ones, and no bias to load.

Sparse attention leaves what an online softmax (FlashAttention-2, arXiv:2307.08691) would leave after the kept
keys: relative to the log-sum-exp, its weights sum to 1, and their product with the values is its output. So
the loop goes on from there, and what it ends with is the union of both (SVG-EAR, arXiv 2603.08982), without a
merge of its own. A row that skips nothing passes unchanged, bit for bit.

Means, the order of the grid and what is specialised are those of :mod:`dit_sparse.kernels.triton_pooled`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels.triton_pooled import (
    fitted_config,
    last_log2,
    load_means,
    load_queries,
    locate,
    padded_means,
    widen,
)
from dit_sparse.kernels.triton_tiles import (
    LOG2_E,
    TileConfig,
    TileTable,
    add_weighted,
    contiguous_rows,
    float32_products,
    normalise,
)
from dit_sparse.layout import BlockMap, ceil_div

LIST_TILE = 1024
"""Entries that one step of the listing kernel moves: in one step all blocks of a video of 131,072 tokens."""


@triton.jit(do_not_specialize=["num_blocks", "stride_ib", "stride_ih", "stride_iq",
                               "stride_cb", "stride_ch", "stride_cq"])  # fmt: skip
def _list_kernel(indices, counts, skipped, num_blocks, stride_ib, stride_ih, stride_iq,
                 stride_cb, stride_ch, stride_cq, TILE: tl.constexpr):  # fmt: skip
    """Grid (query blocks, heads, batch): the blocks that one row of the map lacks, ascending.

    The row itself is the scratch space: first a flag per block, then the list, which never overtakes the
    flags that are still to be read. Behind the list the row holds whatever is left.
    """
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    count = tl.load(counts + b * stride_cb + h * stride_ch + row * stride_cq)
    source = indices + b * stride_ib + h * stride_ih + row * stride_iq
    target = skipped + ((b * tl.num_programs(1) + h) * tl.num_programs(0) + row) * num_blocks
    for start in tl.range(0, num_blocks, TILE):
        blocks = start + tl.arange(0, TILE)
        tl.store(target + blocks, tl.full([TILE], 1, dtype=tl.int32), mask=blocks < num_blocks)
    tl.debug_barrier()  # other threads of this program write and read what was just written, here and below
    for start in tl.range(0, count, TILE):
        offs = start + tl.arange(0, TILE)
        kept = tl.load(source + offs, mask=offs < count, other=0)
        tl.store(target + kept, tl.zeros([TILE], dtype=tl.int32), mask=offs < count)
    tl.debug_barrier()
    done = tl.full([], 0, dtype=tl.int32)
    for start in tl.range(0, num_blocks, TILE):
        blocks = start + tl.arange(0, TILE)
        lacking = tl.load(target + blocks, mask=blocks < num_blocks, other=0)
        rank = done + tl.cumsum(lacking, 0) - lacking
        done += tl.sum(lacking, 0)
        tl.debug_barrier()
        tl.store(target + rank, blocks, mask=lacking > 0)
        tl.debug_barrier()


@triton.jit
def _step(q_tile, keys, values, skipped, start, count, last_block, last_bias, scale_log2, acc, peak, total,
          D_PAD: tl.constexpr, TILE_N: tl.constexpr, LAST: tl.constexpr, WIDEN: tl.constexpr,
          PRECISION: tl.constexpr):  # fmt: skip
    """One online-softmax step over a tile of the list: (acc, peak, total).

    Only the LAST tile may be short, and only it can hold a block with fewer tokens.
    """
    offs_n = start + tl.arange(0, TILE_N)
    offs_d = tl.arange(0, D_PAD)
    if LAST:
        blocks = tl.load(skipped + offs_n, mask=offs_n < count, other=0)
    else:
        blocks = tl.load(skipped + offs_n)
    k = load_means(keys, blocks, offs_d, D_PAD, WIDEN)
    logits = tl.dot(q_tile, tl.trans(k), input_precision=PRECISION) * scale_log2
    if LAST:
        bias = tl.where(blocks == last_block, last_bias, 0.0)
        logits += tl.where(offs_n < count, bias, float("-inf"))[None, :]
    new_peak = tl.maximum(peak, tl.max(logits, 1))
    weights = tl.exp2(logits - new_peak[:, None])
    decay = tl.exp2(peak - new_peak)
    v = load_means(values, blocks, offs_d, D_PAD, WIDEN)
    acc = add_weighted(acc * decay[:, None], weights, v, WIDEN, PRECISION)
    return acc, new_peak, total * decay + tl.sum(weights, 1)


@triton.jit(do_not_specialize=["num_queries", "query_blocks", "num_blocks", "stride_lb", "stride_lh",
                               "stride_cb", "stride_ch", "stride_cq"])  # fmt: skip
def _compensation_kernel(q, keys, values, skipped, counts, first, lse, out, scale_log2, block_log2, last_bias,
                         num_queries, query_blocks, num_blocks, heads,
                         stride_qb, stride_qn, stride_qh, stride_fb, stride_fn, stride_fh,
                         stride_ob, stride_on, stride_oh, stride_lb, stride_lh,
                         stride_cb, stride_ch, stride_cq,
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
    head = b * heads + h
    keys += head * num_blocks * D_PAD
    values += head * num_blocks * D_PAD
    skipped += (head * query_blocks + block) * num_blocks
    count = num_blocks - tl.load(counts + b * stride_cb + h * stride_ch + block.to(tl.int64) * stride_cq)
    rows = offs_m.to(tl.int64)
    mask = live[:, None] & (offs_d < D)[None, :]
    lse_pointers = lse + b * stride_lb + h * stride_lh + rows

    # Weights are relative to 2**(peak + block_log2): a block of n equal keys is n keys, but the logits below
    # lack its log2(n), the same for all full blocks.
    if MERGE:
        first_lse = tl.load(lse_pointers, mask=live, other=0.0) * 1.4426950408889634  # log2(e)
        some = first_lse > float("-inf")
        peak = tl.where(some, first_lse - block_log2, -1.0e30)
        total = tl.where(some, 1.0, 0.0)
        pointers = first + b * stride_fb + h * stride_fh + rows[:, None] * stride_fn + offs_d[None, :]
        acc = tl.load(pointers, mask=mask & some[:, None], other=0.0).to(tl.float32)
    else:  # a finite peak far below any logit
        peak = tl.full([TILE_M], -1.0e30, dtype=tl.float32)
        total = tl.zeros([TILE_M], dtype=tl.float32)
        acc = tl.zeros([TILE_M, D_PAD], dtype=tl.float32)

    last_start = tl.maximum(count - 1, 0) // TILE_N * TILE_N
    for start in tl.range(0, last_start, TILE_N):
        acc, peak, total = _step(
            q_tile, keys, values, skipped, start, count, num_blocks - 1, last_bias, scale_log2,
            acc, peak, total, D_PAD, TILE_N, False, WIDEN, PRECISION,
        )  # fmt: skip
    if count > 0:
        acc, peak, total = _step(
            q_tile, keys, values, skipped, last_start, count, num_blocks - 1, last_bias, scale_log2,
            acc, peak, total, D_PAD, TILE_N, True, WIDEN, PRECISION,
        )  # fmt: skip

    acc, union_lse = normalise(acc, total, peak + block_log2)
    if not MERGE:
        tl.store(lse_pointers, union_lse, mask=live)
    pointers = out + b * stride_ob + h * stride_oh + rows[:, None] * stride_on + offs_d[None, :]
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=mask)


# Every tile of means comes from the L2 cache, 2 tile_m flops per byte, so 64 rows of heads of 128 would be
# bound by its bandwidth on Hopper. Two or three programs share a multiprocessor and hide each other's first
# loads. The 16-bit entries of Hopper were the fastest on an H200 at 40 heads of 128 and 48 of 64. In
# ``gpu_check.py --bench tune_pooled``, of fewer heads, that of 128 is within 4% of the fastest; at 64 the
# host's time to launch hides the differences. The others were chosen by what the compiler makes of them.
_TILES: TileTable = {
    ("hopper", 64, 2): TileConfig(64, 64, 4, 3),
    ("hopper", 128, 2): TileConfig(128, 64, 8, 3, registers=128),
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


def compensation_config(q: Tensor, block_q: int) -> TileConfig:
    """Tiles of :func:`attend` when none are given: a table look-up, nothing is timed."""
    return fitted_config(_TILES, q, block_q)


def skipped_blocks(block_map: BlockMap) -> Tensor:
    """The key blocks that every row of a map lacks, ascending.

    Returns:
        int32 ``[B, H, nQ, nK]``. A row's first ``nK - count`` entries count; the others hold anything.
    """
    batch, heads, query_blocks, num_blocks = block_map.shape
    indices, counts = contiguous_rows(block_map.indices), block_map.counts
    skipped = torch.empty(block_map.shape, dtype=torch.int32, device=indices.device)
    with torch.cuda.device_of(skipped):
        _list_kernel[(query_blocks, heads, batch)](
            indices, counts, skipped, num_blocks, *indices.stride()[:3], *counts.stride(), TILE=LIST_TILE
        )  # fmt: skip
    return skipped


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
    keys, values = padded_means((k, v), block_k)
    skipped, counts = skipped_blocks(block_map), block_map.counts
    if first is None:
        sparse, merge = None, False
        out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.empty(batch, heads, num_queries, dtype=torch.float32, device=q.device)
    else:
        (sparse, lse), merge = first, True
        out = torch.empty(q.shape, dtype=sparse.dtype, device=q.device)
        if lse.stride(-1) != 1:
            lse = lse.contiguous()
    query_blocks, num_blocks = block_map.shape[2:]
    with torch.cuda.device_of(q):
        _compensation_kernel[(query_blocks * tiles * heads, batch)](
            q, keys, values, skipped, counts, sparse, lse, out,
            scale * LOG2_E, math.log2(block_k), last_log2(block_map.num_keys, block_k),
            num_queries, query_blocks, num_blocks, heads,
            *q.stride()[:3], *(out if sparse is None else sparse).stride()[:3], *out.stride()[:3],
            *lse.stride()[:2], *counts.stride(),
            D=dim, D_PAD=keys.shape[-1], BLOCK_Q=block_q, TILES=tiles, TILE_M=config.tile_m,
            TILE_N=config.tile_n, MERGE=merge, WIDEN=widen(q), PRECISION=float32_products(q),
            **config.launch_options(),
        )  # fmt: skip
    return out, lse
