# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Block-sparse attention on 8-bit tensor cores: QK in int8 or e4m3, PV in the input's precision or in e4m3.

The walk over the block map is that of :mod:`dit_sparse.kernels.triton_forward`. What differs:

- q and k arrive as levels and scales (:mod:`dit_sparse.kernels.quantize`). The product of levels is exact in
  int32; one scale per query row, times that of the key tile, enters where the softmax scale did.
- The running maximum is rounded up to an integer (in base 2), so that rescaling multiplies by powers of two.
  The rounding of the softmax weights then does not depend on the order of the tiles, and the definition
  (:mod:`dit_sparse.kernels.quantized_reference`) needs no tiles.
- In e4m3 the weights are formed as ``448 * 2**(logit - maximum)``, which uses the format's whole range. The
  sum of weights carries the same factor, so it cancels in the output.
- Each e4m3 product of weights and values starts from zero and is added in float32 registers: Ada's and
  Hopper's tensor cores keep 13 bits of the significand of such sums (SageAttention2, arXiv:2411.10958, which
  sums on two levels for this reason).
- All loads but those of an unquantised v hit padded memory and need no mask.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels.quantize import KEY_GROUP, QUERY_GROUP, QuantizedTensors, quantize
from dit_sparse.kernels.triton_forward import default_config as native_config
from dit_sparse.kernels.triton_quantize import to_e4m3
from dit_sparse.kernels.triton_tiles import (
    LOG2_E,
    TileConfig,
    add_weighted,
    as_descriptor,
    contiguous_rows,
    fit_tiles,
    float32_products,
    gpu_class,
    kept_blocks,
    load_tile,
    new_outputs,
    normalise,
    tma_ready,
)
from dit_sparse.layout import BlockMap, ceil_div


@triton.jit
def _load_columns(source, base, start, padded_keys, offs_n, offs_d, b, h,
                  TILE_N: tl.constexpr, D_PAD: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """``[TILE_N, D_PAD]`` of v from key ``start``, stored as ``[D_PAD, keys]``: the sum of an 8-bit product
    must run along contiguous memory."""
    if TMA:
        tile = source.load([b, h, 0, start]).reshape(D_PAD, TILE_N)
    else:
        tile = tl.load(source + base + start + offs_d[:, None] * padded_keys + offs_n[None, :])
    return tl.trans(tile)


@triton.jit
def _attend_tile(acc, total, peak, q, row_scale, k_source, v_source, key_scales, k_base, v_base, start,
                 stride_vn, padded_keys, offs_n, offs_d, b, h, num_keys,
                 TILE_N: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, KEY_GROUP: tl.constexpr,
                 MASKED: tl.constexpr, TMA: tl.constexpr, FP8_VALUES: tl.constexpr, WIDEN: tl.constexpr,
                 EMULATE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One online-softmax step over ``TILE_N`` keys: (acc, total, peak); peak is an integer in base 2."""
    log2_top: tl.constexpr = 8.807354922057604
    # The scales are asked for ahead of the product that they meet, which hides their latency.
    if TILE_N > KEY_GROUP:
        scales = tl.load(key_scales + (start + offs_n) // KEY_GROUP)
    else:
        scale = tl.load(key_scales + start // KEY_GROUP)
    k = load_tile(k_source, k_base, start, D_PAD, offs_n, offs_d, b, h, num_keys,
                  TILE_N, D_PAD, D_PAD, False, TMA, False)  # fmt: skip
    logits = tl.dot(q, tl.trans(k)).to(tl.float32)
    if TILE_N > KEY_GROUP:
        logits = logits * scales[None, :]
        step = row_scale
    else:
        step = row_scale * scale
    if MASKED:
        logits = tl.where(((start + offs_n) < num_keys)[None, :], logits, float("-inf"))
    new_peak = tl.maximum(peak, tl.ceil(tl.max(logits, 1) * step))
    decay = tl.exp2(peak - new_peak)
    if FP8_VALUES:
        weights = tl.exp2(logits * step[:, None] - (new_peak - log2_top)[:, None])
        v = _load_columns(v_source, v_base, start, padded_keys, offs_n, offs_d, b, h, TILE_N, D_PAD, TMA)
        # A limit on imprecise sums, here one tile, also keeps the compiler from summing into acc directly.
        product = tl.dot(to_e4m3(weights, EMULATE), v, max_num_imprecise_acc=TILE_N)
        acc = acc * decay[:, None] + product
    else:
        weights = tl.exp2(logits * step[:, None] - new_peak[:, None])
        v = load_tile(v_source, v_base, start, stride_vn, offs_n, offs_d, b, h, num_keys,
                      TILE_N, D, D_PAD, MASKED, TMA, WIDEN)  # fmt: skip
        acc = add_weighted(acc * decay[:, None], weights, v, WIDEN, PRECISION)
    total = total * decay + tl.sum(weights, 1)
    return acc, total, new_peak


@triton.jit(do_not_specialize=[
    "num_queries", "num_keys", "stride_ib", "stride_ih", "stride_iq", "stride_cb", "stride_ch", "stride_cq",
])  # fmt: skip
def _quantized_kernel(q, q_scales, k, k_scales, v, v_scales, key_offset, out, lse, indices, counts,
                      scale_log2, num_queries, num_keys, padded_queries, padded_keys,
                      stride_vb, stride_vn, stride_vh, stride_ob, stride_on, stride_oh,
                      stride_ib, stride_ih, stride_iq, stride_cb, stride_ch, stride_cq,
                      D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
                      QUERY_GROUP: tl.constexpr, KEY_GROUP: tl.constexpr,
                      TILE_M: tl.constexpr, TILE_N: tl.constexpr, WRITE_LSE: tl.constexpr,
                      OFFSET: tl.constexpr, TMA: tl.constexpr, FP8_VALUES: tl.constexpr, WIDEN: tl.constexpr,
                      EMULATE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Grid (query tiles, heads, batch): tiles of one head run together and share its K and V in L2."""
    tiles_per_block: tl.constexpr = BLOCK_K // TILE_N
    row_start = tl.program_id(0) * TILE_M
    h = tl.program_id(1)
    b = tl.program_id(2)
    block_row = (row_start // BLOCK_Q).to(tl.int64)
    h64 = h.to(tl.int64)
    b64 = b.to(tl.int64)
    head = b64 * tl.num_programs(1) + h64

    offs_m = row_start + tl.arange(0, TILE_M)
    offs_n = tl.arange(0, TILE_N)
    offs_d = tl.arange(0, D_PAD)
    rows = offs_m.to(tl.int64)
    q_tile = tl.load(q + (head * padded_queries + rows[:, None]) * D_PAD + offs_d[None, :])
    row_scale = (
        tl.load(q_scales + head * (padded_queries // QUERY_GROUP) + offs_m // QUERY_GROUP) * scale_log2
    )
    key_scales = k_scales + head * (padded_keys // KEY_GROUP)
    k_base = head * padded_keys * D_PAD
    v_base = k_base if FP8_VALUES else b64 * stride_vb + h64 * stride_vh

    row_indices, last, whole, ragged = kept_blocks(
        indices, counts, b64, h64, block_row, num_keys, stride_ib, stride_ih, stride_iq,
        stride_cb, stride_ch, stride_cq, BLOCK_K,
    )  # fmt: skip

    acc = tl.zeros([TILE_M, D_PAD], dtype=tl.float32)
    total = tl.zeros([TILE_M], dtype=tl.float32)
    peak = tl.full([TILE_M], float("-inf"), dtype=tl.float32)
    for step in tl.range(0, whole * tiles_per_block):
        block = tl.load(row_indices + step // tiles_per_block)
        start = block * BLOCK_K + (step % tiles_per_block) * TILE_N
        acc, total, peak = _attend_tile(
            acc, total, peak, q_tile, row_scale, k, v, key_scales, k_base, v_base, start, stride_vn,
            padded_keys, offs_n, offs_d, b, h, num_keys, TILE_N, D, D_PAD, KEY_GROUP, False, TMA, FP8_VALUES,
            WIDEN, EMULATE, PRECISION,
        )  # fmt: skip
    # The ragged block, if this row keeps it: an empty range otherwise.
    tail_start = last * BLOCK_K
    tail_tiles = tl.where(ragged, tl.cdiv(num_keys - tail_start, TILE_N), 0)
    for step in tl.range(0, tail_tiles, num_stages=1):
        start = tail_start + step * TILE_N
        acc, total, peak = _attend_tile(
            acc, total, peak, q_tile, row_scale, k, v, key_scales, k_base, v_base, start, stride_vn,
            padded_keys, offs_n, offs_d, b, h, num_keys, TILE_N, D, D_PAD, KEY_GROUP, True, TMA, FP8_VALUES,
            WIDEN, EMULATE, PRECISION,
        )  # fmt: skip

    if FP8_VALUES:
        acc = acc * tl.load(v_scales + head * D + offs_d, mask=offs_d < D, other=0.0)[None, :]
        peak = peak - 8.807354922057604  # log2(448), which the sum of weights carries
    acc, value = normalise(acc, total, peak)
    out_pointers = out + b64 * stride_ob + h64 * stride_oh + rows[:, None] * stride_on + offs_d[None, :]
    live = (offs_m < num_queries)[:, None] & (offs_d < D)[None, :]
    tl.store(out_pointers, acc.to(out.dtype.element_ty), mask=live)
    if WRITE_LSE:
        at = head * num_queries + rows
        if OFFSET:
            ln_2: tl.constexpr = 0.6931471805599453
            offset = tl.load(key_offset + at, mask=offs_m < num_queries, other=0.0)
            value += offset * scale_log2 * ln_2
        tl.store(lse + at, value, mask=offs_m < num_queries)


# (largest tile_m, tile_n, warps, stages) by (class of GPU, padded head size, bytes of a value), as in
# triton_forward; float32 values take its entries. fp8 needs no "ampere" entry: those GPUs cannot run it.
_TILES: dict[tuple[str, int, int], tuple[int, int, int, int]] = {
    ("hopper", 64, 2): (128, 128, 8, 3),
    ("hopper", 128, 2): (128, 128, 8, 3),
    ("hopper", 64, 1): (128, 128, 8, 3),
    ("hopper", 128, 1): (128, 128, 8, 3),
    ("ampere", 64, 2): (128, 64, 4, 3),
    ("ampere", 128, 2): (128, 64, 8, 3),
    ("small", 64, 2): (128, 64, 4, 3),
    ("small", 128, 2): (128, 64, 8, 2),
    ("small", 64, 1): (128, 64, 4, 3),
    ("small", 128, 1): (128, 64, 8, 3),
}


def default_config(
    device: torch.device, value_dtype: torch.dtype, head_dim: int, block_size: tuple[int, int]
) -> TileConfig:
    """The tile configuration that :func:`attend` uses when none is given.

    Args:
        device: where the tensors live.
        value_dtype: of v as the kernel reads it.
        head_dim: of q, k and v.
        block_size: sparse (query, key) block; its largest power-of-two divisors bound the tiles.
    """
    if value_dtype.itemsize == 4:
        return native_config(device, value_dtype, head_dim, block_size)
    gpu = gpu_class(device)
    # The interpreter runs every mode with the tiles of "small", which has an entry for each.
    gpu = gpu if device.type == "cuda" else "small"
    tiles = _TILES[gpu, 64 if head_dim <= 64 else 128, value_dtype.itemsize]
    return fit_tiles(tiles, block_size, tma=gpu == "hopper")


def attend(
    tensors: QuantizedTensors,
    block_map: BlockMap,
    *,
    scale: float,
    return_lse: bool,
    config: TileConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Launch the kernel on quantised tensors.

    Args:
        tensors: of :func:`dit_sparse.kernels.quantize.quantize`.
        block_map: kept pairs.
        scale: factor on the logits.
        return_lse: also form the log-sum-exp.
        config: overrides :func:`default_config`, for tuning.

    Returns:
        As :func:`forward`.
    """
    q, k, v = tensors.q, tensors.k, tensors.v
    batch, heads, padded_queries, head_padded = q.shape
    num_queries, head_dim = block_map.num_queries, tensors.head_dim
    fp8_values = tensors.v_scale is not None
    config = config or default_config(q.device, v.dtype, head_dim, block_map.block_size)
    out, lse = new_outputs((batch, num_queries, heads, head_dim), tensors.dtype, q.device, return_lse)
    indices, counts = contiguous_rows(block_map.indices), block_map.counts

    v_strides = (0, 0, 0) if fp8_values else v.stride()[:3]
    use_tma = config.tma and (fp8_values or tma_ready(v))
    k_source, v_source = k, v
    if use_tma:
        k_source = as_descriptor(k, config.tile_n, head_padded)
        v_source = (
            as_descriptor(v, head_padded, config.tile_n)
            if fp8_values
            else as_descriptor(v.transpose(1, 2), config.tile_n, head_padded)
        )
    grid = (ceil_div(num_queries, config.tile_m), heads, batch)
    with torch.cuda.device_of(q):
        _quantized_kernel[grid](
            q, tensors.q_scale, k_source, tensors.k_scale, v_source, tensors.v_scale, tensors.key_offset,
            out, lse, indices, counts, scale * LOG2_E, num_queries, block_map.num_keys,
            padded_queries, k.shape[2], *v_strides, *out.stride()[:3],
            *indices.stride()[:3], *counts.stride(),
            D=head_dim, D_PAD=head_padded, BLOCK_Q=block_map.block_size[0], BLOCK_K=block_map.block_size[1],
            QUERY_GROUP=QUERY_GROUP, KEY_GROUP=KEY_GROUP, TILE_M=config.tile_m, TILE_N=config.tile_n,
            WRITE_LSE=return_lse, OFFSET=tensors.key_offset is not None, TMA=use_tma, FP8_VALUES=fp8_values,
            # As in triton_forward: the interpreter multiplies the bit patterns of bfloat16.
            WIDEN=v.dtype == torch.bfloat16 and not v.is_cuda,
            EMULATE=not q.is_cuda, PRECISION=float32_products(v),
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return out, lse


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    scale: float,
    return_lse: bool,
    precision: str,
    smooth: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Quantise and attend; see :func:`dit_sparse.kernels.block_sparse_attention`.

    Args:
        smooth: see :func:`dit_sparse.kernels.quantize.quantize`.

    Returns:
        out ``[B, Nq, H, D]`` contiguous in q's dtype, and the natural log-sum-exp float32 ``[B, H, Nq]`` or
        None.
    """
    tensors = quantize(q, k, v, precision, smooth=smooth, with_lse=return_lse, impl="triton")
    return attend(tensors, block_map, scale=scale, return_lse=return_lse)
