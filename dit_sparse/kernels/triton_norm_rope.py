# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""RMSNorm, RoPE and permutation of a token's heads in Triton: read once, written once.

One program holds one token with all its heads in registers. So the statistic of a norm over the whole model
width needs neither a pass of its own nor a second read, and the token's angles are read once for all heads.
The permutation is applied where the rows are written: each head's row goes to its own place, as a whole row,
which costs memory no more than rows in order. A gather would have to split the token's heads over programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

VALUES_PER_WARP = 256
MAX_WARPS = 8
"""8 warps at every width that real models have: 16 rows of 128 bf16 values are one sweep of the program, rows
beyond the last head cost nothing, and registers suffice for several programs per multiprocessor."""


@triton.jit(do_not_specialize=["tokens", "start", "rotated", "stride_pb", "stride_ph", "stride_pn"])
def _norm_rope_kernel(x, weight, rotary, positions, out, tokens, start, rotated, eps,
                      stride_xb, stride_xn, stride_xh, stride_pb, stride_ph, stride_pn,
                      H: tl.constexpr, D: tl.constexpr, H_PAD: tl.constexpr, D_PAD: tl.constexpr,
                      ACROSS_HEADS: tl.constexpr, ROUND_SCALED: tl.constexpr, ROUND_NORMED: tl.constexpr,
                      PERMUTE: tl.constexpr):  # fmt: skip
    """Grid (tokens, batch); ``out`` is contiguous ``[B, N, H, D]``."""
    dtype = out.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1).to(tl.int64)
    heads = tl.arange(0, H_PAD)
    offs_d = tl.arange(0, D_PAD)
    live = (heads < H)[:, None] & (offs_d < D)[None, :]
    source = x + b * stride_xb + token * stride_xn
    values = tl.load(
        source + heads.to(tl.int64)[:, None] * stride_xh + offs_d[None, :], mask=live, other=0.0
    ).to(tl.float32)

    if ACROSS_HEADS:
        mean = tl.sum(tl.sum(values * values, axis=1), axis=0) / (H * D)
        normed = values * tl.rsqrt(mean + eps)
        gain = tl.load(weight + heads[:, None] * D + offs_d[None, :], mask=live, other=0.0)
    else:
        mean = tl.sum(values * values, axis=1) / D
        normed = values * tl.rsqrt(mean + eps)[:, None]
        gain = tl.load(weight + offs_d, mask=offs_d < D, other=0.0)[None, :]
    if ROUND_SCALED:
        normed = normed.to(dtype).to(tl.float32)
    normed = normed * gain.to(tl.float32)
    if ROUND_NORMED:
        normed = normed.to(dtype).to(tl.float32)

    # Tokens without an angle are turned by none: cos 1, sin 0.
    entry = (token - start) * D + offs_d
    turned = (offs_d < D) & (entry >= 0) & (entry < rotated.to(tl.int64) * D)
    pairs = tl.load(rotary + entry, mask=turned, other=(offs_d % 2 == 0).to(tl.float32))
    cos, sin = tl.split(tl.reshape(pairs, [D_PAD // 2, 2]))
    even, odd = tl.split(tl.reshape(normed, [H_PAD, D_PAD // 2, 2]))
    cos = cos[None, :]
    sin = sin[None, :]
    result = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), [H_PAD, D_PAD])

    if PERMUTE:
        place = tl.load(
            positions + b * stride_pb + heads.to(tl.int64) * stride_ph + token * stride_pn,
            mask=heads < H,
            other=0,
        ).to(tl.int64)
        rows = (b * tokens + place) * H + heads
    else:
        rows = (b * tokens + token) * H + heads
    tl.store(out + rows[:, None] * D + offs_d[None, :], result.to(dtype), mask=live)


def forward(
    x: Tensor,
    weight: Tensor,
    rotary: Tensor,
    positions: Tensor | None,
    *,
    eps: float,
    start: int,
    round_scaled: bool,
    round_normed: bool,
    num_warps: int | None = None,
) -> Tensor:
    """See :func:`dit_sparse.kernels.norm_rope.norm_rope`.

    Args:
        x: ``[B, N, H, D]``, last dimension contiguous.
        weight: ``[D]`` or ``[H * D]``, contiguous.
        rotary: float32 ``[R, D / 2, 2]``, contiguous.
        positions: ``[B, H, N]`` any strides: where each token of a head goes; None leaves all in place.
        eps, start: as there.
        round_scaled, round_normed: round to x's dtype before and after the weight is applied.
        num_warps: warps per program; None takes what the width asks for.
    """
    batch, tokens, heads, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    heads_pad, dim_pad = triton.next_power_of_2(heads), triton.next_power_of_2(dim)
    if num_warps is None:
        num_warps = min(max(heads_pad * dim_pad // VALUES_PER_WARP, 1), MAX_WARPS)
    strides = (0, 0, 0) if positions is None else positions.stride()
    with torch.cuda.device_of(x):
        _norm_rope_kernel[(tokens, batch)](
            x, weight, rotary, x if positions is None else positions, out,
            tokens, start, rotary.shape[0], eps, *x.stride()[:3], *strides,
            H=heads, D=dim, H_PAD=heads_pad, D_PAD=dim_pad, ACROSS_HEADS=weight.numel() != dim,
            ROUND_SCALED=round_scaled, ROUND_NORMED=round_normed, PERMUTE=positions is not None,
            num_warps=num_warps,
        )  # fmt: skip
    return out
