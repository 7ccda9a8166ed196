"""QK normalisation, rotary embedding and permutation in one pass over memory.

Stock processors run RMSNorm and RoPE as a chain of element-wise kernels, each of which reads and writes all
of q or k. Here a token is read once, normalised and turned in float32, and every head's row is written where
the ordering wants it. The torch definition below says what is computed; on a GPU a Triton kernel does it at
memory speed.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dit_sparse.kernels.checks import FLOAT_DTYPES, check_tokens
from dit_sparse.kernels.dispatch import use_triton
from dit_sparse.kernels.rows import check_order, permute_rows, restore_rows

Rounding = Literal["end", "torch", "diffusers"]
"""Where values pass through x's dtype: only as the result ("end"); after the norm too, as between
``torch.nn.RMSNorm`` and RoPE ("torch"); before the norm's weight too, as in diffusers' ``RMSNorm``
("diffusers"). In float32 all are the same."""


def rotary_table(cos: Tensor, sin: Tensor) -> Tensor:
    """The angles of :func:`norm_rope` from the tables that diffusers makes.

    Args:
        cos, sin: ``[R, D]`` or ``[1, R, 1, D]``; both entries of a pair of columns (2i, 2i + 1) are equal
            (``repeat_interleave_real``), so one of each is kept.

    Returns:
        float32 ``[R, D / 2, 2]``, contiguous: (cos, sin) of every pair. Half the bytes of the two;
        make it once per forward, not per layer.
    """
    dim = cos.shape[-1]
    rows = cos.numel() // dim
    if cos.shape != sin.shape or cos.shape not in ((rows, dim), (1, rows, 1, dim)) or dim % 2:
        raise ValueError(
            "cos and sin must both be [R, D] or [1, R, 1, D] with an even D, "
            f"got {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    cos, sin = cos.reshape(rows, dim), sin.reshape(rows, dim)
    return torch.stack([cos[:, 0::2], sin[:, 1::2]], dim=-1).float()


def inverse_order(order: Tensor) -> Tensor:
    """``positions`` with ``positions[..., order[..., i]] = i``: where each token goes.

    Args:
        order: permutations of 0..N-1 along the last dimension, int64 or int32.
    """
    tokens = torch.arange(order.shape[-1], dtype=order.dtype, device=order.device)
    return torch.empty_like(order).scatter_(-1, order.long(), tokens.expand(order.shape))


@torch.no_grad()
def norm_rope(
    x: Tensor,
    weight: Tensor,
    rotary: Tensor,
    *,
    eps: float,
    start: int = 0,
    rounding: Rounding = "end",
    order: Tensor | None = None,
    positions: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """RMSNorm, then RoPE on adjacent pairs, then, where asked for, :func:`permute_rows`.

    ``y = x * rsqrt(mean(x ** 2) + eps) * weight``; pair i of token ``start + r`` becomes
    ``(y[2i] cos - y[2i+1] sin, y[2i] sin + y[2i+1] cos)`` with the angles ``rotary[r, i]``. All in float32.
    Inference only: the result carries no gradient.

    Args:
        x: ``[B, N, H, D]``, float16, bfloat16 or float32, D even; any strides with a contiguous last
            dimension (a projection's output, viewed).
        weight: of the norm. ``[D]``: the mean is over each head (HunyuanVideo, Flux); ``[H * D]``: over all
            heads of a token (Wan).
        rotary: float32 ``[R, D / 2, 2]`` from :func:`rotary_table`.
        eps: added to the mean square, positive.
        start: the R tokens from here on are turned, all others (text) are only normalised.
        rounding: see :data:`Rounding`.
        order: token i of the result is token ``order[..., i]``: ``[N]``, ``[H, N]`` or ``[B, H, N]``, int64
            or int32. None leaves the tokens in place.
        positions: instead of ``order``, its :func:`inverse_order`. The kernel needs this one: an order that
            serves many calls is best inverted once.
        impl: "auto" (Triton on a GPU), "triton" or "reference".

    Returns:
        Contiguous ``[B, N, H, D]`` in x's dtype.

    Raises:
        ValueError: for tensors that do not fit together, both ``order`` and ``positions``, or an unknown
            ``rounding`` or ``impl``.
    """
    _check(x, weight, rotary, eps, start, rounding)
    if order is not None and positions is not None:
        raise ValueError("order and positions say the same: give one of them")
    given = order if order is not None else positions
    expanded = None if given is None else check_order(x, given)
    if use_triton(x, impl):
        from dit_sparse.kernels import triton_norm_rope

        if order is not None:
            expanded = inverse_order(order).expand(x.shape[0], x.shape[2], x.shape[1])
        return triton_norm_rope.forward(
            x,
            weight,
            rotary,
            expanded,
            eps=eps,
            start=start,
            round_scaled=rounding == "diffusers",
            round_normed=rounding != "end",
        )
    out = _reference(x, weight, rotary, eps, start, rounding)
    if order is not None:
        return permute_rows(out, order, impl="reference")
    if positions is not None:
        return restore_rows(out, positions, impl="reference")
    return out


def _check(x: Tensor, weight: Tensor, rotary: Tensor, eps: float, start: int, rounding: str) -> None:
    check_tokens("x", x)
    _, tokens, heads, dim = x.shape
    if dim % 2:
        raise ValueError(f"the head size must be even to rotate pairs, got x {tuple(x.shape)}")
    if weight.shape not in ((dim,), (heads * dim,)) or not weight.is_contiguous():
        raise ValueError(
            f"weight must be [D] = [{dim}] or [H * D] = [{heads * dim}] and contiguous, "
            f"got {tuple(weight.shape)} with strides {weight.stride()}"
        )
    if weight.dtype not in FLOAT_DTYPES or rotary.dtype != torch.float32:
        raise ValueError(
            "weight must be float16, bfloat16 or float32 and rotary float32, "
            f"got {weight.dtype} and {rotary.dtype}"
        )
    if rotary.dim() != 3 or rotary.shape[1:] != (dim // 2, 2) or not rotary.is_contiguous():
        raise ValueError(
            f"rotary must be [R, D / 2, 2] = [R, {dim // 2}, 2] as rotary_table makes it, "
            f"got {tuple(rotary.shape)} with strides {rotary.stride()}"
        )
    if weight.device != x.device or rotary.device != x.device:
        raise ValueError(
            f"x, weight and rotary must share a device, got {x.device}, {weight.device}, {rotary.device}"
        )
    if not 0 <= start <= tokens - rotary.shape[0]:
        raise ValueError(
            f"{rotary.shape[0]} angles from token {start} on do not fit {tokens} tokens: "
            "start must be at least 0 and start + R at most N"
        )
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    if rounding not in get_args(Rounding):
        raise ValueError(f"unknown rounding {rounding!r}: choose one of {list(get_args(Rounding))}")


def _reference(
    x: Tensor, weight: Tensor, rotary: Tensor, eps: float, start: int, rounding: Rounding
) -> Tensor:
    """The definition, in place order."""
    dim = x.shape[-1]
    values = x.float()
    over = (3,) if weight.numel() == dim else (2, 3)
    normed = values * torch.rsqrt(values.square().mean(dim=over, keepdim=True) + eps)
    if rounding == "diffusers":
        normed = normed.to(x.dtype).float()
    normed = normed * weight.float().view(-1, dim)
    if rounding != "end":
        normed = normed.to(x.dtype).float()
    turned = slice(start, start + rotary.shape[0])
    even, odd = normed[:, turned, :, 0::2], normed[:, turned, :, 1::2]
    cos, sin = rotary[:, None, :, 0], rotary[:, None, :, 1]
    out = normed.to(x.dtype)
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    out[:, turned] = pairs.flatten(-2).to(x.dtype)
    return out.contiguous()
