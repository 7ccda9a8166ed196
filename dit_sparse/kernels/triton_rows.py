# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Row gather and scatter in Triton: one program moves ``ROWS`` tokens of one head, reading and writing whole
rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.layout import ceil_div

TILE_BYTES = 16 * 1024
"""Data one program moves: enough loads in flight to cover memory latency."""


@triton.jit(do_not_specialize=["tokens", "stride_ob", "stride_oh", "stride_on"])
def _move_kernel(x, order, out, tokens, stride_xb, stride_xn, stride_xh, stride_yb, stride_yn, stride_yh,
                 stride_ob, stride_oh, stride_on, D: tl.constexpr, D_PAD: tl.constexpr, ROWS: tl.constexpr,
                 SCATTER: tl.constexpr):  # fmt: skip
    """Grid (runs of tokens, heads, batch). The ordered side is the source of a gather, the target of a
    scatter."""
    h = tl.program_id(1).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = position < tokens
    position = position.to(tl.int64)
    ordered = tl.load(order + b * stride_ob + h * stride_oh + position * stride_on, mask=live, other=0).to(
        tl.int64
    )
    if SCATTER:
        source = position
        target = ordered
    else:
        source = ordered
        target = position
    offs_d = tl.arange(0, D_PAD)
    mask = live[:, None] & (offs_d < D)[None, :]
    rows = tl.load(
        x + b * stride_xb + h * stride_xh + source[:, None] * stride_xn + offs_d[None, :], mask=mask
    )
    tl.store(
        out + b * stride_yb + h * stride_yh + target[:, None] * stride_yn + offs_d[None, :], rows, mask=mask
    )


def move(x: Tensor, order: Tensor, *, scatter: bool) -> Tensor:
    """Permute (``scatter=False``) or restore the rows of ``x``; see :mod:`dit_sparse.kernels.rows`.

    Args:
        x: ``[B, N, H, D]``.
        order: ``[B, H, N]``, any strides, so that an order shared by heads is read in place.
    """
    batch, tokens, heads, dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    # Bits are moved as integers: a float could be quietened or flushed on its way.
    as_integer = {1: torch.int8, 2: torch.int16, 4: torch.int32}[x.element_size()]
    dim_pad = triton.next_power_of_2(dim)
    rows = max(1, TILE_BYTES // (dim_pad * x.element_size()))
    grid = (ceil_div(tokens, rows), heads, batch)
    with torch.cuda.device_of(x):
        _move_kernel[grid](
            x.view(as_integer), order, out.view(as_integer), tokens,
            *x.stride()[:3], *out.stride()[:3], *order.stride(),
            D=dim, D_PAD=dim_pad, ROWS=triton.next_power_of_2(rows), SCATTER=scatter,
        )  # fmt: skip
    return out
