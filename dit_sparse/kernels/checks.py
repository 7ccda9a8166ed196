"""Validation at the public boundary: shapes, types and devices are checked here once, the kernels trust
them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dit_sparse.layout import BlockMap, ceil_div

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def check_tokens(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES) -> None:
    """``x`` must be a ``[B, N, H, D]`` tensor of one of these types whose last dimension is contiguous.

    Raises:
        ValueError: naming the tensor, what was received and what works.
    """
    if x.dim() != 4 or min(x.shape) < 1:
        raise ValueError(f"{name} must be [B, N, H, D] with every size at least 1, got {tuple(x.shape)}")
    if x.dtype not in dtypes:
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        raise ValueError(f"{name} must be {', '.join(names[:-1])} or {names[-1]}, got {x.dtype}")
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(
            f"the last dimension of {name} must be contiguous, got strides {x.stride()}: "
            "call .contiguous() first"
        )


def check_block_size(block_size: tuple[int, int]) -> None:
    """Both edges of a sparse block must be at least one token."""
    if len(block_size) != 2 or min(block_size) < 1:
        raise ValueError(f"block_size must be (query tokens, key tokens), each at least 1, got {block_size}")


def check_pair(q: Tensor, k: Tensor) -> None:
    """q ``[B, Nq, H, D]`` and k ``[B, Nk, H, D]`` must agree in all but the token count."""
    check_tokens("q", q)
    check_tokens("k", k)
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(
            f"q and k must share batch, heads and head size, got q {tuple(q.shape)} and k {tuple(k.shape)}: "
            "repeat the key heads of grouped-query models first"
        )
    if q.dtype != k.dtype or q.device != k.device:
        raise ValueError(
            f"q and k must share dtype and device, got {q.dtype} on {q.device}, {k.dtype} on {k.device}"
        )


def check_attention(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap) -> None:
    """q, k, v and the block map must describe one attention call.

    Only shapes and types are read, never the contents of the map: that would stall the GPU.
    """
    check_pair(q, k)
    check_tokens("v", v)
    if v.shape != k.shape or v.dtype != k.dtype or v.device != k.device:
        raise ValueError(
            f"v must match k in shape, dtype and device, got v {tuple(v.shape)} {v.dtype} on {v.device}, "
            f"k {tuple(k.shape)} {k.dtype} on {k.device}"
        )
    check_block_size(block_map.block_size)
    tokens = (block_map.num_queries, block_map.num_keys)
    if tokens != (q.shape[1], k.shape[1]):
        raise ValueError(
            f"the block map was built for {tokens[0]} queries and {tokens[1]} keys, "
            f"got q with {q.shape[1]} and k with {k.shape[1]}"
        )
    rows = (q.shape[0], q.shape[2], ceil_div(q.shape[1], block_map.block_size[0]))
    for name, tensor in (("indices", block_map.indices), ("counts", block_map.counts)):
        if tuple(tensor.shape[:3]) != rows or tensor.dim() != (4 if name == "indices" else 3):
            raise ValueError(
                f"block map {name} must start with [B, H, nQ] = {rows}, got {tuple(tensor.shape)}"
            )
        if tensor.dtype != torch.int32 or tensor.device != q.device:
            raise ValueError(
                f"block map {name} must be int32 on {q.device}, got {tensor.dtype} on {tensor.device}"
            )


def resolve_scale(scale: float | None, head_dim: int) -> float:
    """The softmax scale: 1 / sqrt(D) by default, else any positive finite number."""
    if scale is None:
        return head_dim**-0.5
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive finite number or None, got {scale}")
    return float(scale)
