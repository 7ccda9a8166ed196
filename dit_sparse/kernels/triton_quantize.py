# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Quantisation in Triton: one read of q, k or v, one write of levels and scales.

The definitions are in :mod:`dit_sparse.kernels.quantize`; these follow them operation by operation. One
program owns the tokens that share a scale, so the peak is known before anything is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels.quantize import E4M3, FLOOR, channel_scales, head_pad, padded_tokens
from dit_sparse.layout import ceil_div

CHANNEL_TILE = 64
"""Tokens of v that one program transposes."""


@triton.jit
def to_e4m3(x, EMULATE: tl.constexpr):
    """float32 in [-448, 448] to e4m3, to nearest even.

    ``EMULATE``: Triton's interpreter truncates, and drops the carry of the significand. It is given numbers
    that need no rounding: float32 bits rounded to 4 significant ones, and multiples of 2**-9 below the
    normal range.
    """
    if EMULATE:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
        fine = (x + 24576.0) - 24576.0
        x = tl.where(tl.abs(x) < 0.015625, fine, bits.to(tl.float32, bitcast=True))
    return x.to(tl.float8e4nv)


@triton.jit(do_not_specialize=["tokens"])
def _rows_kernel(x, centre, project, levels, scales, dots, tokens, padded, stride_xb, stride_xn, stride_xh,
                 D: tl.constexpr, D_PAD: tl.constexpr, GROUP: tl.constexpr, TOP: tl.constexpr,
                 FLOOR: tl.constexpr, CENTRE: tl.constexpr, PROJECT: tl.constexpr, FP8: tl.constexpr,
                 EMULATE: tl.constexpr):  # fmt: skip
    """Grid (groups, heads, batch)."""
    group = tl.program_id(0)
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    head = b * tl.num_programs(1) + h
    rows = group * GROUP + tl.arange(0, GROUP)
    rows64 = rows.to(tl.int64)
    offs_d = tl.arange(0, D_PAD)
    live = (rows < tokens)[:, None] & (offs_d < D)[None, :]
    tile = tl.load(
        x + b * stride_xb + h * stride_xh + rows64[:, None] * stride_xn + offs_d[None, :],
        mask=live,
        other=0.0,
    ).to(tl.float32)
    if PROJECT:
        direction = tl.load(project + head * D + offs_d, mask=offs_d < D, other=0.0)
        tl.store(dots + head * tokens + rows64, tl.sum(tile * direction[None, :], 1), mask=rows < tokens)
    if CENTRE:
        middle = tl.load(centre + head * D + offs_d, mask=offs_d < D, other=0.0)
        tile = tl.where(live, tile - middle[None, :], 0.0)
    peak = tl.maximum(tl.max(tl.max(tl.abs(tile), 1), 0), FLOOR)
    # A maximum passes over NaN, a sum does not: what is not finite must show in the result.
    peak += tl.sum(tl.sum(tile * 0.0, 1), 0)
    scale = peak * (1.0 / TOP)
    tl.store(scales + head * (padded // GROUP) + group, scale)
    tile = tile * tl.div_rn(1.0, scale)
    pointers = levels + (head * padded + rows64[:, None]) * D_PAD + offs_d[None, :]
    if FP8:
        tl.store(pointers, to_e4m3(tile, EMULATE))
    else:
        # Adding and subtracting 1.5 * 2**23 rounds to the nearest integer, ties to even.
        tl.store(pointers, ((tile + 12582912.0) - 12582912.0).to(tl.int8))


@triton.jit(do_not_specialize=["tokens"])
def _channels_kernel(v, scales, levels, tokens, padded, stride_vb, stride_vn, stride_vh,
                     D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr,
                     EMULATE: tl.constexpr):  # fmt: skip
    """Grid (runs of tokens, heads, batch): scales by channel, transposes and reorders."""
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    head = b * tl.num_programs(1) + h
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    # The tokens that stand there: the inverse of quantize.value_columns.
    rows = (columns & -16) | ((columns & 12) >> 1) | ((columns & 2) << 2) | (columns & 1)
    rows64 = rows.to(tl.int64)
    offs_d = tl.arange(0, D_PAD)
    live = (rows < tokens)[:, None] & (offs_d < D)[None, :]
    tile = tl.load(
        v + b * stride_vb + h * stride_vh + rows64[:, None] * stride_vn + offs_d[None, :],
        mask=live,
        other=0.0,
    ).to(tl.float32)
    scale = tl.load(scales + head * D + offs_d, mask=offs_d < D, other=1.0)
    tile = to_e4m3(tile * tl.div_rn(1.0, scale)[None, :], EMULATE)
    pointers = levels + (head * D_PAD + offs_d.to(tl.int64)[:, None]) * padded + columns[None, :]
    tl.store(pointers, tl.trans(tile))


def quantize_rows(
    x: Tensor,
    group: int,
    top: float,
    dtype: torch.dtype,
    *,
    centre: Tensor | None = None,
    project: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See :func:`dit_sparse.kernels.quantize.quantize_rows`."""
    batch, tokens, heads, dim = x.shape
    padded, dim_pad = padded_tokens(tokens), head_pad(dim)
    levels = torch.empty(batch, heads, padded, dim_pad, dtype=dtype, device=x.device)
    scales = torch.empty(batch, heads, padded // group, dtype=torch.float32, device=x.device)
    dots = None
    if project is not None:
        dots = torch.empty(batch, heads, tokens, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _rows_kernel[(padded // group, heads, batch)](
            x, None if centre is None else centre.contiguous(),
            None if project is None else project.contiguous(), levels, scales, dots, tokens, padded,
            *x.stride()[:3], D=dim, D_PAD=dim_pad, GROUP=group, TOP=top, FLOOR=FLOOR,
            CENTRE=centre is not None, PROJECT=project is not None, FP8=dtype == E4M3, EMULATE=not x.is_cuda,
            # A product that is not rounded before the sum that rounds it would tip ties.
            enable_fp_fusion=False,
        )  # fmt: skip
    return levels, scales, dots


def quantize_channels(v: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`dit_sparse.kernels.quantize.quantize_channels`."""
    batch, tokens, heads, dim = v.shape
    padded, dim_pad = padded_tokens(tokens), head_pad(dim)
    scales = channel_scales(v).contiguous()
    levels = torch.empty(batch, heads, dim_pad, padded, dtype=E4M3, device=v.device)
    with torch.cuda.device_of(v):
        _channels_kernel[(ceil_div(padded, CHANNEL_TILE), heads, batch)](
            v, scales, levels, tokens, padded, *v.stride()[:3],
            D=dim, D_PAD=dim_pad, TILE=CHANNEL_TILE, EMULATE=not v.is_cuda,
        )  # fmt: skip
    return levels, scales
