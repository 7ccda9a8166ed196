"""Block-sparse attention in low precision on any device: the gathered path over quantised tensors.

It emulates: q, k and v are rounded to their levels and multiplied as float32. That is what
:mod:`dit_sparse.kernels.quantized_reference` defines, up to float32 rounding, at the cost of the gathered
path: for studies of quality where no GPU can run the kernel, not to save time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels import gathered
from dit_sparse.kernels.quantize import dequantize_channels, dequantize_rows, quantize
from dit_sparse.kernels.quantized_reference import e4m3_weights
from dit_sparse.layout import BlockMap

CHUNK_BYTES = 64 * 2**20
"""Bound on the float32 logits of one chunk of queries."""


def _attend_e4m3(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """:func:`gathered.attend_rows` with softmax weights in e4m3, chunked over queries."""
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:2], device=q.device)
    step = max(1, CHUNK_BYTES // (4 * q.shape[0] * k.shape[1]))
    for start in range(0, q.shape[1], step):
        part = slice(start, start + step)
        logits = torch.bmm(q[:, part], k.transpose(1, 2)) * scale
        if mask is not None:
            logits = logits + mask
        lse[:, part] = torch.logsumexp(logits, dim=-1)
        weights, total = e4m3_weights(logits)
        out[:, part] = torch.bmm(weights, v) / total
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
    """See :func:`dit_sparse.kernels.block_sparse_attention`.

    Args:
        smooth: see :func:`dit_sparse.kernels.quantize.quantize`.
    """
    tensors = quantize(q, k, v, precision, smooth=smooth, with_lse=return_lse)
    dim = q.shape[-1]
    rounded_q = dequantize_rows(tensors.q, tensors.q_scale, q.shape[1], dim)
    rounded_k = dequantize_rows(tensors.k, tensors.k_scale, k.shape[1], dim)
    attend, rounded_v = gathered.attend_rows, v
    if tensors.v_scale is not None:
        attend, rounded_v = _attend_e4m3, dequantize_channels(tensors.v, tensors.v_scale, k.shape[1])
    out, lse = gathered.forward(
        rounded_q, rounded_k, rounded_v, block_map, scale=scale, return_lse=return_lse, attend=attend
    )
    if lse is not None and tensors.key_offset is not None:
        lse = lse + tensors.key_offset * scale
    return out.to(q.dtype), lse
