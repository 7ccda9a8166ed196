# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Block-sparse attention forward in Triton: the backend for Ampere, Ada, AMD, and any GPU without
FlashAttention-4.

One program owns ``TILE_M`` query rows of one (batch, head) and walks the key blocks its row of the block map
keeps, with the online softmax of FlashAttention-2 (Dao 2023, arXiv:2307.08691) in base 2: the running maximum
and sum stay in registers, so neither logits nor probabilities reach memory, and a skipped block costs
nothing.

What keeps the inner loop clean:

- Kept blocks are ascending, so only the last one of a row can be ragged. It runs in a second, masked loop;
  the main loop tests no key index.
- A sparse block may be larger than the tile that fits the GPU: the loop runs over ``BLOCK_K / TILE_N`` tiles
  per block, and the grid over ``BLOCK_Q / TILE_M`` programs per block row.
- Bases are 64-bit, offsets within a tile 32-bit: tensors beyond 2**31 elements are safe at no cost in the
  loop.
- On sm_90 and later, K and V tiles arrive through tensor descriptors (TMA), which also zero-fill ragged rows
  and head sizes that are no power of two. Elsewhere, and for unaligned strides, through masked pointer loads.
- Token counts are not specialised: one compilation serves every resolution.

Tensor cores and exponentials must run side by side, or each waits for the other. Two ways are offered by the
configuration. ``overlap`` shifts the loop by half a step: a step forms the logits of its tile, begins the
product of the weights of the tile before with their values, and does its softmax while that runs, as
FlashAttention-3 does within a warpgroup (Shah et al. 2024, arXiv:2407.08608). ``registers`` and short tiles
let several programs share a multiprocessor, of which one multiplies while another exponentiates.
"""

from __future__ import annotations

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
    as_descriptor,
    contiguous_rows,
    fit_tiles,
    float32_products,
    gpu_class,
    held_weights,
    hold,
    kept_blocks,
    load_tile,
    new_outputs,
    normalise,
    tma_ready,
)
from dit_sparse.layout import BlockMap, ceil_div


@triton.jit
def _logits(q, k_source, k_base, start, stride_kn, offs_n, offs_d, b, h, num_keys,
            TILE_N: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
            MASKED: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Products of the query tile with the ``TILE_N`` keys from ``start``; -inf beyond the sequence."""
    k = load_tile(k_source, k_base, start, stride_kn, offs_n, offs_d, b, h, num_keys,
                  TILE_N, D, D_PAD, MASKED, TMA, WIDEN)  # fmt: skip
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        logits = tl.where(((start + offs_n) < num_keys)[None, :], logits, float("-inf"))
    return logits


@triton.jit
def _softmax_step(logits, scale_log2, total, peak):
    """One online-softmax step: (weights, decay of what came before, total, peak), in base 2."""
    new_peak = tl.maximum(peak, tl.max(logits, 1) * scale_log2)
    weights = tl.exp2(logits * scale_log2 - new_peak[:, None])
    decay = tl.exp2(peak - new_peak)
    return weights, decay, total * decay + tl.sum(weights, 1), new_peak


@triton.jit
def _attend_tile(acc, total, peak, q, k_source, v_source, k_base, v_base, start, stride_kn, stride_vn,
                 offs_n, offs_d, b, h, num_keys, scale_log2,
                 TILE_N: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
                 MASKED: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """``TILE_N`` keys, from the logits to the values: (acc, total, peak)."""
    logits = _logits(q, k_source, k_base, start, stride_kn, offs_n, offs_d, b, h, num_keys,
                     TILE_N, D, D_PAD, MASKED, TMA, WIDEN, PRECISION)  # fmt: skip
    weights, decay, total, peak = _softmax_step(logits, scale_log2, total, peak)
    v = load_tile(v_source, v_base, start, stride_vn, offs_n, offs_d, b, h, num_keys,
                  TILE_N, D, D_PAD, MASKED, TMA, WIDEN)  # fmt: skip
    return add_weighted(acc * decay[:, None], weights, v, WIDEN, PRECISION), total, peak


@triton.jit(do_not_specialize=[
    "num_queries", "num_keys", "stride_ib", "stride_ih", "stride_iq", "stride_cb", "stride_ch", "stride_cq",
    "stride_lb", "stride_lh",
])  # fmt: skip
def _forward_kernel(q, k, v, out, lse, indices, counts, scale_log2, num_queries, num_keys,
                    stride_qb, stride_qn, stride_qh, stride_kb, stride_kn, stride_kh,
                    stride_vb, stride_vn, stride_vh, stride_ob, stride_on, stride_oh,
                    stride_ib, stride_ih, stride_iq, stride_cb, stride_ch, stride_cq, stride_lb, stride_lh,
                    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                    TILE_M: tl.constexpr, TILE_N: tl.constexpr, WRITE_LSE: tl.constexpr,
                    TMA: tl.constexpr, OVERLAP: tl.constexpr, WIDEN: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """Grid (query tiles, heads, batch): tiles of one head run together and share its K and V in L2."""
    tiles_per_block: tl.constexpr = BLOCK_K // TILE_N
    row_start = tl.program_id(0) * TILE_M
    h = tl.program_id(1)
    b = tl.program_id(2)
    block_row = (row_start // BLOCK_Q).to(tl.int64)
    h64 = h.to(tl.int64)
    b64 = b.to(tl.int64)

    offs_m = row_start + tl.arange(0, TILE_M)
    offs_n = tl.arange(0, TILE_N)
    offs_d = tl.arange(0, D_PAD)
    live = (offs_m < num_queries)[:, None] & (offs_d < D)[None, :]
    rows = offs_m.to(tl.int64)
    q_pointers = q + b64 * stride_qb + h64 * stride_qh + rows[:, None] * stride_qn + offs_d[None, :]
    q_tile = tl.load(q_pointers, mask=live, other=0.0)
    if WIDEN:
        q_tile = q_tile.to(tl.float32)
    k_base = b64 * stride_kb + h64 * stride_kh
    v_base = b64 * stride_vb + h64 * stride_vh

    row_indices, last, whole, ragged = kept_blocks(
        indices, counts, b64, h64, block_row, num_keys, stride_ib, stride_ih, stride_iq,
        stride_cb, stride_ch, stride_cq, BLOCK_K,
    )  # fmt: skip

    acc = tl.zeros([TILE_M, D_PAD], dtype=tl.float32)
    total = tl.zeros([TILE_M], dtype=tl.float32)
    peak = tl.full([TILE_M], float("-inf"), dtype=tl.float32)
    tiles = whole * tiles_per_block
    if OVERLAP:
        # The weights of the tile before wait for their product: none yet, so zeros meet the first values.
        held = hold(tl.zeros([TILE_M, TILE_N], dtype=q_tile.dtype))
        decay = tl.full([TILE_M], 1.0, dtype=tl.float32)
        before = tl.load(row_indices) * BLOCK_K
        for step in tl.range(0, tiles):
            block = tl.load(row_indices + step // tiles_per_block)
            start = block * BLOCK_K + (step % tiles_per_block) * TILE_N
            logits = _logits(q_tile, k, k_base, start, stride_kn, offs_n, offs_d, b, h, num_keys,
                             TILE_N, D, D_PAD, False, TMA, WIDEN, PRECISION)  # fmt: skip
            v_tile = load_tile(v, v_base, before, stride_vn, offs_n, offs_d, b, h, num_keys,
                               TILE_N, D, D_PAD, False, TMA, WIDEN)  # fmt: skip
            acc = add_weighted(
                acc * decay[:, None], held_weights(held, q_tile.dtype), v_tile, WIDEN, PRECISION
            )
            weights, decay, total, peak = _softmax_step(logits, scale_log2, total, peak)
            held = hold(weights.to(q_tile.dtype))
            before = start
        if tiles > 0:
            v_tile = load_tile(v, v_base, before, stride_vn, offs_n, offs_d, b, h, num_keys,
                               TILE_N, D, D_PAD, False, TMA, WIDEN)  # fmt: skip
            acc = add_weighted(
                acc * decay[:, None], held_weights(held, q_tile.dtype), v_tile, WIDEN, PRECISION
            )
    else:
        for step in tl.range(0, tiles):
            block = tl.load(row_indices + step // tiles_per_block)
            start = block * BLOCK_K + (step % tiles_per_block) * TILE_N
            acc, total, peak = _attend_tile(
                acc, total, peak, q_tile, k, v, k_base, v_base, start, stride_kn, stride_vn, offs_n, offs_d,
                b, h, num_keys, scale_log2, TILE_N, D, D_PAD, False, TMA, WIDEN, PRECISION,
            )  # fmt: skip
    # The ragged block, if this row keeps it: an empty range otherwise.
    tail_start = last * BLOCK_K
    tail_tiles = tl.where(ragged, tl.cdiv(num_keys - tail_start, TILE_N), 0)
    for step in tl.range(0, tail_tiles, num_stages=1):
        start = tail_start + step * TILE_N
        acc, total, peak = _attend_tile(
            acc, total, peak, q_tile, k, v, k_base, v_base, start, stride_kn, stride_vn, offs_n, offs_d, b, h,
            num_keys, scale_log2, TILE_N, D, D_PAD, True, TMA, WIDEN, PRECISION,
        )  # fmt: skip

    acc, value = normalise(acc, total, peak)
    out_pointers = out + b64 * stride_ob + h64 * stride_oh + rows[:, None] * stride_on + offs_d[None, :]
    tl.store(out_pointers, acc.to(out.dtype.element_ty), mask=live)
    if WRITE_LSE:
        tl.store(lse + b64 * stride_lb + h64 * stride_lh + rows, value, mask=offs_m < num_queries)


# Hopper's 16-bit entries were the fastest of ``gpu_check.py --bench tune`` on an H200: with 128 registers two
# programs share a multiprocessor.
_TILES: TileTable = {
    ("hopper", 64, 2): TileConfig(64, 128, 4, 3, overlap=True),
    ("hopper", 128, 2): TileConfig(128, 64, 8, 3, registers=128),
    ("ampere", 64, 2): TileConfig(128, 64, 4, 3),
    ("ampere", 128, 2): TileConfig(128, 64, 8, 3),
    ("small", 64, 2): TileConfig(128, 64, 4, 2),
    ("small", 128, 2): TileConfig(128, 32, 8, 2),
    ("hopper", 64, 4): TileConfig(64, 32, 4, 2),
    ("hopper", 128, 4): TileConfig(64, 32, 4, 2),
    ("ampere", 64, 4): TileConfig(64, 32, 4, 2),
    ("ampere", 128, 4): TileConfig(32, 32, 4, 2),
    ("small", 64, 4): TileConfig(64, 32, 4, 1),
    ("small", 128, 4): TileConfig(32, 32, 4, 1),
}


def default_config(
    device: torch.device, dtype: torch.dtype, head_dim: int, block_size: tuple[int, int]
) -> TileConfig:
    """The tile configuration that ``forward`` uses when none is given: a table look-up, nothing is timed.

    Args:
        device: where the tensors live; its compute capability decides the shared memory budget.
        dtype, head_dim: of q, k and v.
        block_size: sparse (query, key) block; its largest power-of-two divisors bound the tiles.
    """
    gpu = gpu_class(device)
    tiles = _TILES[gpu, 64 if head_dim <= 64 else 128, dtype.itemsize]
    return fit_tiles(tiles, block_size, tma=gpu == "hopper" and dtype.itemsize == 2)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    scale: float,
    return_lse: bool,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Launch the kernel on validated input; see :func:`dit_sparse.kernels.block_sparse_attention`.

    Args:
        config: overrides :func:`default_config`, for tuning.

    Returns:
        out ``[B, Nq, H, D]`` contiguous in q's dtype, and the natural log-sum-exp float32 ``[B, H, Nq]`` or
        None.
    """
    batch, num_queries, heads, head_dim = q.shape
    config = config or default_config(q.device, q.dtype, head_dim, block_map.block_size)
    head_pad = max(MIN_TILE, triton.next_power_of_2(head_dim))
    out, lse = new_outputs(q.shape, q.dtype, q.device, return_lse)
    indices, counts = contiguous_rows(block_map.indices), block_map.counts

    use_tma = config.tma and tma_ready(k) and tma_ready(v)
    k_source = as_descriptor(k.transpose(1, 2), config.tile_n, head_pad) if use_tma else k
    v_source = as_descriptor(v.transpose(1, 2), config.tile_n, head_pad) if use_tma else v
    grid = (ceil_div(num_queries, config.tile_m), heads, batch)
    lse_strides = lse.stride()[:2] if lse is not None else (0, 0)
    with torch.cuda.device_of(q):
        _forward_kernel[grid](
            q, k_source, v_source, out, lse, indices, counts, scale * LOG2_E, num_queries, k.shape[1],
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            *indices.stride()[:3], *counts.stride(), *lse_strides,
            D=head_dim, D_PAD=head_pad, BLOCK_Q=block_map.block_size[0], BLOCK_K=block_map.block_size[1],
            TILE_M=config.tile_m, TILE_N=config.tile_n, WRITE_LSE=return_lse, TMA=use_tma,
            OVERLAP=config.overlap,
            # Triton's interpreter multiplies the bit patterns of bfloat16, so it gets exact float32 copies.
            WIDEN=q.dtype == torch.bfloat16 and not q.is_cuda,
            PRECISION=float32_products(q),
            **config.launch_options(),
        )  # fmt: skip
    return out, lse
