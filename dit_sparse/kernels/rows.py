"""Reordering tokens: gather every head's rows into a new order, and put them back.

Orderings move tokens that attend to one another next to each other, per head. Both directions copy bits and
never do arithmetic, so a round trip is exact. The torch path defines them; on a GPU a Triton kernel copies at
memory speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_sparse.kernels.checks import FLOAT_DTYPES, check_tokens
from dit_sparse.kernels.dispatch import use_triton

MOVED = (*FLOAT_DTYPES, torch.int8)
"""Types of the rows that can be moved."""
TOGETHER = 3
"""Tensors that can be moved in one launch: q, k and v."""


def check_order(x: Tensor, order: Tensor) -> Tensor:
    """``order`` as a ``[B, H, N]`` view.

    Its values must be permutations: that is the caller's promise, checking it would read the GPU's memory.
    """
    batch, tokens, heads, _ = x.shape
    if order.dtype not in (torch.int64, torch.int32) or order.device != x.device:
        raise ValueError(f"order must be int64 or int32 on {x.device}, got {order.dtype} on {order.device}")
    if tuple(order.shape) not in ((tokens,), (heads, tokens), (batch, heads, tokens)):
        raise ValueError(
            f"order must be [N], [H, N] or [B, H, N] for x [B, N, H, D] = {tuple(x.shape)}, "
            f"got {tuple(order.shape)}"
        )
    return order.expand(batch, heads, tokens)


def _row_index(order: Tensor, dim: int) -> Tensor:
    """``[B, H, N]`` to int64 ``[B, N, H, D]`` without a copy along D."""
    return order.long().transpose(1, 2)[..., None].expand(-1, -1, -1, dim)


@torch.no_grad()
def permute_rows(x: Tensor, order: Tensor, *, impl: str = "auto") -> Tensor:
    """``out[b, i, h] = x[b, order[b, h, i], h]``: token i of the result is token ``order[..., i]`` of x.

    Args:
        x: ``[B, N, H, D]``, any of :data:`MOVED`; any strides with a contiguous last dimension.
        order: permutations of 0..N-1, int64 (or int32) ``[N]``, ``[H, N]`` or ``[B, H, N]``.
        impl: "auto" (Triton on a GPU), "triton" or "reference".

    Returns:
        Contiguous ``[B, N, H, D]``, bit for bit the rows of x.
    """
    return permute_together((x,), order, impl=impl)[0]


@torch.no_grad()
def permute_together(tensors: Sequence[Tensor], order: Tensor, *, impl: str = "auto") -> tuple[Tensor, ...]:
    """:func:`permute_rows` of several tensors that share an order: one launch where they also share shape,
    strides and type, as q, k and v of a layer do.

    Args:
        tensors: one to three, each as there.
        order: as there.
        impl: as there.

    Raises:
        ValueError: for another number of tensors.
    """
    if not 1 <= len(tensors) <= TOGETHER:
        raise ValueError(f"one to {TOGETHER} tensors can be moved together, got {len(tensors)}")
    for x in tensors:
        check_tokens("x", x, MOVED)
        expanded = check_order(x, order)
    if use_triton(tensors[0], impl):
        from dit_sparse.kernels import triton_rows

        if len({(x.shape, x.stride(), x.dtype) for x in tensors}) == 1:
            return triton_rows.move(tensors, expanded, scatter=False)
        return tuple(triton_rows.move((x,), expanded, scatter=False)[0] for x in tensors)
    if order.dim() == 1:
        return tuple(x.index_select(1, order) for x in tensors)
    return tuple(x.gather(1, _row_index(expanded, x.shape[-1])).contiguous() for x in tensors)


@torch.no_grad()
def restore_rows(x: Tensor, order: Tensor, *, impl: str = "auto") -> Tensor:
    """``out[b, order[b, h, i], h] = x[b, i, h]``: the exact inverse of :func:`permute_rows`.

    Args and returns as there.
    """
    check_tokens("x", x, MOVED)
    expanded = check_order(x, order)
    if use_triton(x, impl):
        from dit_sparse.kernels import triton_rows

        return triton_rows.move((x,), expanded, scatter=True)[0]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if order.dim() == 1:
        return out.index_copy_(1, order.long(), x)
    return out.scatter_(1, _row_index(expanded, x.shape[-1]), x)
