# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Row gather and scatter in Triton: one program moves ``ROWS`` tokens of one head, reading and writing whole
rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels.rows import TOGETHER
from dit_sparse.layout import ceil_div

TILE_BYTES = 16 * 1024
"""Data one program moves: enough loads in flight to cover memory latency."""
MOST_ROWS = 256
"""Rows of one program: of short rows, such as those of a carried residual, a full tile holds thousands."""
UNITS = (torch.int64, torch.int32, torch.int16, torch.int8)
"""What rows are moved as. Integers: a float could be quietened or flushed on its way."""


def _unit(tensors: Sequence[Tensor]) -> torch.dtype:
    """The widest integer that all rows are made of: fewer loads for the same bytes."""
    size = tensors[0].element_size()
    places = {t.shape[-1] * size for t in tensors} | {
        place for t in tensors for place in (t.data_ptr(), *(stride * size for stride in t.stride()[:3]))
    }
    return next(unit for unit in UNITS if all(place % unit.itemsize == 0 for place in places))


@triton.jit(do_not_specialize=["tokens", "stride_ob", "stride_oh", "stride_on"])
def _move_kernel(x0, x1, x2, order, y0, y1, y2, tokens, stride_xb, stride_xn, stride_xh, stride_yb, stride_yn,
                 stride_yh, stride_ob, stride_oh, stride_on, D: tl.constexpr, D_PAD: tl.constexpr,
                 ROWS: tl.constexpr, COUNT: tl.constexpr, SCATTER: tl.constexpr):  # fmt: skip
    """Grid (runs of tokens, heads, batch). The ordered side is the source of a gather, the target of a
    scatter. The order is read once for the COUNT tensors."""
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
    read = b * stride_xb + h * stride_xh + source[:, None] * stride_xn + offs_d[None, :]
    written = b * stride_yb + h * stride_yh + target[:, None] * stride_yn + offs_d[None, :]
    rows0 = tl.load(x0 + read, mask=mask)
    if COUNT > 1:
        rows1 = tl.load(x1 + read, mask=mask)
    if COUNT > 2:
        rows2 = tl.load(x2 + read, mask=mask)
    tl.store(y0 + written, rows0, mask=mask)
    if COUNT > 1:
        tl.store(y1 + written, rows1, mask=mask)
    if COUNT > 2:
        tl.store(y2 + written, rows2, mask=mask)


def move(tensors: Sequence[Tensor], order: Tensor, *, scatter: bool) -> tuple[Tensor, ...]:
    """Permute (``scatter=False``) or restore the rows of tensors; see :mod:`dit_sparse.kernels.rows`.

    Args:
        tensors: one to :data:`~dit_sparse.kernels.rows.TOGETHER` ``[B, N, H, D]`` of one shape, type and
            strides.
        order: ``[B, H, N]``, any strides, so that an order shared by heads is read in place.
    """
    count, first = len(tensors), tensors[0]
    batch, tokens, heads, _ = first.shape
    out = tuple(torch.empty(first.shape, dtype=first.dtype, device=first.device) for _ in tensors)
    unit = _unit((*tensors, *out))
    # The kernel touches the first of its places only: the others are filled with what is there.
    x, y = (([t.view(unit) for t in some] * TOGETHER)[:TOGETHER] for some in (tensors, out))
    dim = x[0].shape[-1]
    dim_pad = triton.next_power_of_2(dim)
    rows = min(MOST_ROWS, triton.next_power_of_2(max(1, TILE_BYTES // (dim_pad * unit.itemsize))))
    grid = (ceil_div(tokens, rows), heads, batch)
    with torch.cuda.device_of(first):
        _move_kernel[grid](
            *x, order, *y, tokens,
            *x[0].stride()[:3], *y[0].stride()[:3], *order.stride(),
            D=dim, D_PAD=dim_pad, ROWS=rows, COUNT=count, SCATTER=scatter,
        )  # fmt: skip
    return out
