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
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.layout import BlockMap, ceil_div

LOG2_E = math.log2(math.e)
MIN_TILE = 16
"""Smallest tile edge of a tensor-core product."""
TMA_ALIGNMENT_BYTES = 16


@dataclass(frozen=True)
class TileConfig:
    """How one launch is cut.

    Args:
        tile_m, tile_n: query rows per program and keys per loop step; powers of two that divide the sparse
            block.
        num_warps, num_stages: warps per program, depth of the load pipeline.
        tma: load K and V through tensor descriptors.
    """

    tile_m: int
    tile_n: int
    num_warps: int
    num_stages: int
    tma: bool = False


@triton.jit
def _load_tile(source, base, start, stride_n, offs_n, offs_d, b, h, num_keys,
               TILE_N: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
               MASKED: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """``[TILE_N, D_PAD]`` rows of K or V from key ``start``; beyond the sequence or the head size: zeros."""
    if TMA:
        tile = source.load([b, h, start, 0]).reshape(TILE_N, D_PAD)
    else:
        pointers = (
            source + base + start.to(tl.int64) * stride_n + offs_n[:, None] * stride_n + offs_d[None, :]
        )
        if MASKED:
            live = ((start + offs_n) < num_keys)[:, None] & (offs_d < D)[None, :]
            tile = tl.load(pointers, mask=live, other=0.0)
        elif D != D_PAD:
            tile = tl.load(pointers, mask=(offs_d < D)[None, :], other=0.0)
        else:
            tile = tl.load(pointers)
    if WIDEN:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _attend_tile(acc, total, peak, q, k_source, v_source, k_base, v_base, start, stride_kn, stride_vn,
                 offs_n, offs_d, b, h, num_keys, scale_log2,
                 TILE_N: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
                 MASKED: tl.constexpr, TMA: tl.constexpr, WIDEN: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """One online-softmax step over ``TILE_N`` keys: (acc, total, peak) with logits in base 2."""
    k = _load_tile(k_source, k_base, start, stride_kn, offs_n, offs_d, b, h, num_keys,
                   TILE_N, D, D_PAD, MASKED, TMA, WIDEN)  # fmt: skip
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        logits = tl.where(((start + offs_n) < num_keys)[None, :], logits, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(logits, 1) * scale_log2)
    weights = tl.exp2(logits * scale_log2 - new_peak[:, None])
    decay = tl.exp2(peak - new_peak)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None]
    v = _load_tile(v_source, v_base, start, stride_vn, offs_n, offs_d, b, h, num_keys,
                   TILE_N, D, D_PAD, MASKED, TMA, WIDEN)  # fmt: skip
    if WIDEN:
        weights = weights.to(tl.bfloat16).to(tl.float32)
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total, new_peak


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
                    TMA: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
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

    row_indices = indices + b64 * stride_ib + h64 * stride_ih + block_row * stride_iq
    kept = tl.load(counts + b64 * stride_cb + h64 * stride_ch + block_row * stride_cq)
    last = tl.load(row_indices + tl.maximum(kept - 1, 0))
    ragged = (kept > 0) & ((last + 1) * BLOCK_K > num_keys)
    whole = tl.where(ragged, kept - 1, kept)

    acc = tl.zeros([TILE_M, D_PAD], dtype=tl.float32)
    total = tl.zeros([TILE_M], dtype=tl.float32)
    peak = tl.full([TILE_M], float("-inf"), dtype=tl.float32)
    for step in tl.range(0, whole * tiles_per_block):
        block = tl.load(row_indices + step // tiles_per_block)
        start = block * BLOCK_K + (step % tiles_per_block) * TILE_N
        acc, total, peak = _attend_tile(
            acc, total, peak, q_tile, k, v, k_base, v_base, start, stride_kn, stride_vn, offs_n, offs_d, b, h,
            num_keys, scale_log2, TILE_N, D, D_PAD, False, TMA, WIDEN, PRECISION,
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

    # An empty row has total 0: it is written as zeros, with log2(0) = -inf as its log-sum-exp.
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    out_pointers = out + b64 * stride_ob + h64 * stride_oh + rows[:, None] * stride_on + offs_d[None, :]
    tl.store(out_pointers, acc.to(out.dtype.element_ty), mask=live)
    if WRITE_LSE:
        ln_2: tl.constexpr = 0.6931471805599453
        value = tl.where(total > 0, (peak + tl.log2(tl.where(total > 0, total, 1.0))) * ln_2, float("-inf"))
        tl.store(lse + b64 * stride_lb + h64 * stride_lh + rows, value, mask=offs_m < num_queries)


# (largest tile_m, tile_n, warps, stages) by (class of GPU, padded head size, element bytes). Head sizes
# between entries use the next larger one. "hopper": sm_90 and sm_100, 227 KB of shared memory; "ampere":
# sm_80, 163 KB, and AMD; "small": sm_86, sm_89 and sm_120, 99 KB.
_TILES: dict[tuple[str, int, int], tuple[int, int, int, int]] = {
    ("hopper", 64, 2): (128, 128, 8, 3),
    ("hopper", 128, 2): (128, 128, 8, 3),
    ("ampere", 64, 2): (128, 64, 4, 3),
    ("ampere", 128, 2): (128, 64, 8, 3),
    ("small", 64, 2): (128, 64, 4, 2),
    ("small", 128, 2): (128, 32, 8, 2),
    ("hopper", 64, 4): (64, 32, 4, 2),
    ("hopper", 128, 4): (64, 32, 4, 2),
    ("ampere", 64, 4): (64, 32, 4, 2),
    ("ampere", 128, 4): (32, 32, 4, 2),
    ("small", 64, 4): (64, 32, 4, 1),
    ("small", 128, 4): (32, 32, 4, 1),
}


def _gpu_class(device: torch.device) -> str:
    if device.type != "cuda" or torch.version.hip is not None:
        return "ampere"
    major, minor = torch.cuda.get_device_capability(device)
    if major in (9, 10):
        return "hopper"
    return "ampere" if (major, minor) == (8, 0) else "small"


def _power_of_two_divisor(value: int) -> int:
    return value & -value


def _tma_ready(tensor: Tensor) -> bool:
    """Whether a tensor descriptor can address ``tensor``: 16-byte aligned base and strides."""
    per_unit = TMA_ALIGNMENT_BYTES // tensor.element_size()
    return tensor.data_ptr() % TMA_ALIGNMENT_BYTES == 0 and all(
        s % per_unit == 0 for s in tensor.stride()[:-1]
    )


def default_config(
    device: torch.device, dtype: torch.dtype, head_dim: int, block_size: tuple[int, int]
) -> TileConfig:
    """The tile configuration that ``forward`` uses when none is given: a table look-up, nothing is timed.

    Args:
        device: where the tensors live; its compute capability decides the shared memory budget.
        dtype, head_dim: of q, k and v.
        block_size: sparse (query, key) block; its largest power-of-two divisors bound the tiles.
    """
    gpu = _gpu_class(device)
    tile_m, tile_n, warps, stages = _TILES[gpu, 64 if head_dim <= 64 else 128, dtype.itemsize]
    tile_m = min(tile_m, _power_of_two_divisor(block_size[0]))
    tile_n = min(tile_n, _power_of_two_divisor(block_size[1]))
    if tile_m <= 64 and dtype.itemsize == 2:
        warps = 4
    return TileConfig(tile_m, tile_n, warps, stages, tma=gpu == "hopper" and dtype.itemsize == 2)


def _float32_products(tensor: Tensor) -> str:
    """How float32 products are formed: three TF32 passes on tensor cores (about 2**-21 relative) where NVIDIA
    has them."""
    nvidia = tensor.is_cuda and torch.version.hip is None
    return "tf32x3" if tensor.dtype == torch.float32 and nvidia else "ieee"


def _as_descriptor(tensor: Tensor, rows: int, columns: int):
    from triton.tools.tensor_descriptor import TensorDescriptor

    view = tensor.transpose(1, 2)  # [B, H, N, D]: leading unit dimensions fold away in the kernel
    return TensorDescriptor(view, list(view.shape), list(view.stride()), [1, 1, rows, columns])


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
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, num_queries, dtype=torch.float32, device=q.device) if return_lse else None
    indices, counts = block_map.indices, block_map.counts
    if indices.stride(-1) != 1:
        indices = indices.contiguous()

    use_tma = config.tma and _tma_ready(k) and _tma_ready(v)
    k_source = _as_descriptor(k, config.tile_n, head_pad) if use_tma else k
    v_source = _as_descriptor(v, config.tile_n, head_pad) if use_tma else v
    grid = (ceil_div(num_queries, config.tile_m), heads, batch)
    lse_strides = lse.stride()[:2] if lse is not None else (0, 0)
    with torch.cuda.device_of(q):
        _forward_kernel[grid](
            q, k_source, v_source, out, lse, indices, counts, scale * LOG2_E, num_queries, k.shape[1],
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            *indices.stride()[:3], *counts.stride(), *lse_strides,
            D=head_dim, D_PAD=head_pad, BLOCK_Q=block_map.block_size[0], BLOCK_K=block_map.block_size[1],
            TILE_M=config.tile_m, TILE_N=config.tile_n, WRITE_LSE=return_lse, TMA=use_tma,
            # Triton's interpreter multiplies the bit patterns of bfloat16, so it gets exact float32 copies.
            WIDEN=q.dtype == torch.bfloat16 and not q.is_cuda,
            PRECISION=_float32_products(q),
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return out, lse
