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
- Tokens of an e4m3 v stand in the order in which a thread holds their weights, so that these go from one
  product to the next without a shuffle.
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
def _load_columns(source, base, start, padded_keys, offs_n, b, h, TILE_N: tl.constexpr,
                  FIRST: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """``[TILE_N, COLUMNS]`` of v from key ``start`` and column ``FIRST``, stored as ``[D_PAD, keys]``: the
    sum of an 8-bit product must run along contiguous memory."""
    if TMA:
        tile = source.load([b, h, FIRST, start]).reshape(COLUMNS, TILE_N)
    else:
        rows = FIRST + tl.arange(0, COLUMNS)
        tile = tl.load(source + base + start + rows[:, None] * padded_keys + offs_n[None, :])
    return tl.trans(tile)


@triton.jit
def _logits(q, row_scale, k_source, key_scales, k_base, start, offs_n, offs_d, b, h, num_keys,
            TILE_N: tl.constexpr, D_PAD: tl.constexpr, KEY_GROUP: tl.constexpr,
            MASKED: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """(products of the query tile with the ``TILE_N`` keys from ``start``, what a row's have to be multiplied
    by to be logits in base 2); -inf beyond the sequence."""
    # The scales are asked for ahead of the product that they meet, which hides their latency.
    if TILE_N > KEY_GROUP:
        scales = tl.load(key_scales + (start + offs_n) // KEY_GROUP)
    else:
        scale = tl.load(key_scales + start // KEY_GROUP)
    k = load_tile(k_source, k_base, start, D_PAD, offs_n, offs_d, b, h, num_keys,
                  TILE_N, D_PAD, D_PAD, False, TMA, False)  # fmt: skip
    products = tl.dot(q, tl.trans(k)).to(tl.float32)
    if TILE_N > KEY_GROUP:
        products = products * scales[None, :]
        step = row_scale
    else:
        step = row_scale * scale
    if MASKED:
        products = tl.where(((start + offs_n) < num_keys)[None, :], products, float("-inf"))
    return products, step


@triton.jit
def _softmax_step(products, step, total, peak, FP8_VALUES: tl.constexpr):
    """One online-softmax step: (weights, decay of what came before, total, peak); peak is an integer in base
    2."""
    log2_top: tl.constexpr = 8.807354922057604
    new_peak = tl.maximum(peak, tl.ceil(tl.max(products, 1) * step))
    decay = tl.exp2(peak - new_peak)
    if FP8_VALUES:
        weights = tl.exp2(products * step[:, None] - (new_peak - log2_top)[:, None])
    else:
        weights = tl.exp2(products * step[:, None] - new_peak[:, None])
    return weights, decay, total * decay + tl.sum(weights, 1), new_peak


@triton.jit
def _e4m3_weights(weights, EMULATE: tl.constexpr):
    """Weights in e4m3, in the order in which the tokens of v stand (``quantize.value_columns``): to a tensor
    core, what the logits' product left in a thread's registers is then its operand."""
    rows: tl.constexpr = weights.shape[0]
    keys: tl.constexpr = weights.shape[1]
    runs = to_e4m3(weights, EMULATE).reshape(rows, keys // 16, 2, 4, 2)
    return tl.permute(runs, (0, 1, 3, 2, 4)).reshape(rows, keys)


@triton.jit
def _e4m3_product(weights, v):
    """Weights and values in e4m3. A limit on imprecise sums, here one tile, also keeps the compiler from
    summing into an accumulator directly."""
    return tl.dot(weights, v, max_num_imprecise_acc=weights.shape[1])


@triton.jit
def _attend_tile(acc, acc_right, total, peak, q, row_scale, k_source, v_source, key_scales, k_base, v_base,
                 start, stride_vn, padded_keys, offs_n, offs_d, b, h, num_keys,
                 TILE_N: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, KEY_GROUP: tl.constexpr,
                 MASKED: tl.constexpr, TMA: tl.constexpr, FP8_VALUES: tl.constexpr, SPLIT: tl.constexpr,
                 WIDEN: tl.constexpr, EMULATE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """``TILE_N`` keys, from the logits to the values: (acc, acc_right, total, peak)."""
    columns: tl.constexpr = acc.shape[1]
    products, step = _logits(q, row_scale, k_source, key_scales, k_base, start, offs_n, offs_d, b, h,
                             num_keys, TILE_N, D_PAD, KEY_GROUP, MASKED, TMA)  # fmt: skip
    weights, decay, total, peak = _softmax_step(products, step, total, peak, FP8_VALUES)
    if FP8_VALUES:
        weights = _e4m3_weights(weights, EMULATE)
        v = _load_columns(v_source, v_base, start, padded_keys, offs_n, b, h, TILE_N, 0, columns, TMA)
        acc = acc * decay[:, None] + _e4m3_product(weights, v)
        if SPLIT:
            v = _load_columns(
                v_source, v_base, start, padded_keys, offs_n, b, h, TILE_N, columns, columns, TMA
            )
            acc_right = acc_right * decay[:, None] + _e4m3_product(weights, v)
    else:
        v = load_tile(v_source, v_base, start, stride_vn, offs_n, offs_d, b, h, num_keys,
                      TILE_N, D, D_PAD, MASKED, TMA, WIDEN)  # fmt: skip
        acc = add_weighted(acc * decay[:, None], weights, v, WIDEN, PRECISION)
    return acc, acc_right, total, peak


@triton.jit
def _write(out, acc, v_scales, head, rows, live, base, stride_on, D: tl.constexpr, FIRST: tl.constexpr,
           COLUMNS: tl.constexpr, FP8_VALUES: tl.constexpr):  # fmt: skip
    """Columns of the output from ``FIRST`` on."""
    offs_d = FIRST + tl.arange(0, COLUMNS)
    if FP8_VALUES:
        acc = acc * tl.load(v_scales + head * D + offs_d, mask=offs_d < D, other=0.0)[None, :]
    pointers = out + base + rows[:, None] * stride_on + offs_d[None, :]
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=live[:, None] & (offs_d < D)[None, :])


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
                      OFFSET: tl.constexpr, TMA: tl.constexpr, OVERLAP: tl.constexpr,
                      FP8_VALUES: tl.constexpr, SPLIT: tl.constexpr, WIDEN: tl.constexpr,
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

    columns: tl.constexpr = D_PAD // 2 if SPLIT else D_PAD
    acc = tl.zeros([TILE_M, columns], dtype=tl.float32)
    # The right half of the head when it is split; else one column that nothing reads.
    acc_right = tl.zeros([TILE_M, columns if SPLIT else 1], dtype=tl.float32)
    total = tl.zeros([TILE_M], dtype=tl.float32)
    peak = tl.full([TILE_M], float("-inf"), dtype=tl.float32)
    tiles = whole * tiles_per_block
    if OVERLAP:
        # As in triton_forward. e4m3 has no such loop: it would have to carry the product as well, and what
        # the compiler made of that was wrong on a GPU.
        weight_type: tl.constexpr = tl.float32 if WIDEN else out.dtype.element_ty
        held = hold(tl.zeros([TILE_M, TILE_N], dtype=weight_type))
        decay = tl.full([TILE_M], 1.0, dtype=tl.float32)
        before = tl.load(row_indices) * BLOCK_K
        for step in tl.range(0, tiles):
            block = tl.load(row_indices + step // tiles_per_block)
            start = block * BLOCK_K + (step % tiles_per_block) * TILE_N
            products, row_step = _logits(
                q_tile, row_scale, k, key_scales, k_base, start, offs_n, offs_d, b, h, num_keys,
                TILE_N, D_PAD, KEY_GROUP, False, TMA,
            )  # fmt: skip
            v_tile = load_tile(v, v_base, before, stride_vn, offs_n, offs_d, b, h, num_keys,
                               TILE_N, D, D_PAD, False, TMA, WIDEN)  # fmt: skip
            acc = add_weighted(
                acc * decay[:, None], held_weights(held, weight_type), v_tile, WIDEN, PRECISION
            )
            weights, decay, total, peak = _softmax_step(products, row_step, total, peak, False)
            held = hold(weights.to(weight_type))
            before = start
        if tiles > 0:
            v_tile = load_tile(v, v_base, before, stride_vn, offs_n, offs_d, b, h, num_keys,
                               TILE_N, D, D_PAD, False, TMA, WIDEN)  # fmt: skip
            acc = add_weighted(
                acc * decay[:, None], held_weights(held, weight_type), v_tile, WIDEN, PRECISION
            )
    else:
        for step in tl.range(0, tiles):
            block = tl.load(row_indices + step // tiles_per_block)
            start = block * BLOCK_K + (step % tiles_per_block) * TILE_N
            acc, acc_right, total, peak = _attend_tile(
                acc, acc_right, total, peak, q_tile, row_scale, k, v, key_scales, k_base, v_base, start,
                stride_vn, padded_keys, offs_n, offs_d, b, h, num_keys, TILE_N, D, D_PAD, KEY_GROUP, False,
                TMA, FP8_VALUES, SPLIT, WIDEN, EMULATE, PRECISION,
            )  # fmt: skip
    # The ragged block, if this row keeps it: an empty range otherwise.
    tail_start = last * BLOCK_K
    tail_tiles = tl.where(ragged, tl.cdiv(num_keys - tail_start, TILE_N), 0)
    for step in tl.range(0, tail_tiles, num_stages=1):
        start = tail_start + step * TILE_N
        acc, acc_right, total, peak = _attend_tile(
            acc, acc_right, total, peak, q_tile, row_scale, k, v, key_scales, k_base, v_base, start,
            stride_vn, padded_keys, offs_n, offs_d, b, h, num_keys, TILE_N, D, D_PAD, KEY_GROUP, True,
            TMA, FP8_VALUES, SPLIT, WIDEN, EMULATE, PRECISION,
        )  # fmt: skip

    if FP8_VALUES:
        peak = peak - 8.807354922057604  # log2(448), which the sum of weights carries
    live = offs_m < num_queries
    out_base = b64 * stride_ob + h64 * stride_oh
    acc, value = normalise(acc, total, peak)
    _write(out, acc, v_scales, head, rows, live, out_base, stride_on, D, 0, columns, FP8_VALUES)
    if SPLIT:
        acc_right, value = normalise(acc_right, total, peak)
        _write(out, acc_right, v_scales, head, rows, live, out_base, stride_on, D, columns, columns,
               FP8_VALUES)  # fmt: skip
    if WRITE_LSE:
        at = head * num_queries + rows
        if OFFSET:
            ln_2: tl.constexpr = 0.6931471805599453
            offset = tl.load(key_offset + at, mask=live, other=0.0)
            value += offset * scale_log2 * ln_2
        tl.store(lse + at, value, mask=live)


# The bytes are those of a value; float32 values take the entries of triton_forward. fp8 needs no "ampere"
# entry: those GPUs cannot run it. Hopper's entries were the fastest of ``gpu_check.py --bench
# tune-quantized`` on an H200, where several programs share a multiprocessor.
_TILES: TileTable = {
    ("hopper", 64, 2): TileConfig(64, 64, 4, 3, overlap=True),
    ("hopper", 128, 2): TileConfig(128, 64, 4, 5),
    ("hopper", 64, 1): TileConfig(64, 64, 4, 3),
    ("hopper", 128, 1): TileConfig(64, 64, 4, 3),
    ("ampere", 64, 2): TileConfig(128, 64, 4, 3),
    ("ampere", 128, 2): TileConfig(128, 64, 8, 3),
    ("small", 64, 2): TileConfig(128, 64, 4, 3),
    ("small", 128, 2): TileConfig(128, 64, 8, 2),
    ("small", 64, 1): TileConfig(128, 64, 4, 3),
    ("small", 128, 1): TileConfig(128, 64, 8, 3),
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
    split = config.split and fp8_values and head_padded >= 2 * MIN_TILE
    k_source, v_source = k, v
    if use_tma:
        k_source = as_descriptor(k, config.tile_n, head_padded)
        v_source = (
            as_descriptor(v, head_padded // (1 + split), config.tile_n)
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
            WRITE_LSE=return_lse, OFFSET=tensors.key_offset is not None, TMA=use_tma,
            OVERLAP=config.overlap and not fp8_values, FP8_VALUES=fp8_values, SPLIT=split,
            # As in triton_forward: the interpreter multiplies the bit patterns of bfloat16.
            WIDEN=v.dtype == torch.bfloat16 and not v.is_cuda,
            EMULATE=not q.is_cuda, PRECISION=float32_products(v),
            **config.launch_options(),
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
