"""Block-sparse attention in low precision, by definition: the oracle of the quantised kernels.

Levels are multiplied as levels and scaled afterwards, as the kernel does it; softmax and sums are float32. In
e4m3, the softmax weights of a row are ``448 * 2**(logit - maximum)``, with logits in base 2 and their maximum
rounded up to an integer, and the output is divided by the sum of the weights before rounding.

One small dense attention at a time; :mod:`dit_sparse.kernels.quantized_gathered` is the same at speed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dit_sparse.kernels.quantize import E4M3, E4M3_TOP, quantize, value_columns
from dit_sparse.layout import BlockMap


def e4m3_weights(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax weights as e4m3 holds them, and their sum before rounding.

    Args:
        logits: natural, float32 ``[..., keys]`` with at least one finite number in every row.

    Returns:
        float32 ``[..., keys]`` of e4m3 numbers in 0..448, and float32 ``[..., 1]``.
    """
    base_2 = logits * math.log2(math.e)
    weights = E4M3_TOP * torch.exp2(base_2 - base_2.amax(dim=-1, keepdim=True).ceil())
    return weights.to(E4M3).float(), weights.sum(dim=-1, keepdim=True)


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
    """See :func:`dit_sparse.kernels.block_sparse_attention`. Always forms the log-sum-exp.

    Args:
        smooth: see :func:`dit_sparse.kernels.quantize.quantize`.
    """
    tensors = quantize(q, k, v, precision, smooth=smooth)
    batch, num_queries, heads, dim = q.shape
    block_q, block_k = block_map.block_size
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, num_queries, dtype=torch.float32, device=q.device)
    mask = block_map.to_mask()
    groups = [levels.shape[2] // scales.shape[2] for levels, scales in
              ((tensors.q, tensors.q_scale), (tensors.k, tensors.k_scale))]  # fmt: skip
    for b in range(batch):
        for h in range(heads):
            q_scale, k_scale = (
                x[b, h].repeat_interleave(group)
                for x, group in zip((tensors.q_scale, tensors.k_scale), groups)
            )
            for i in range(mask.shape[2]):
                rows = slice(i * block_q, min((i + 1) * block_q, num_queries))
                kept = mask[b, h, i].repeat_interleave(block_k)[: block_map.num_keys].nonzero()[:, 0]
                levels = tensors.q[b, h, rows].float() @ tensors.k[b, h, kept].float().T
                logits = levels * (q_scale[rows, None] * k_scale[kept] * scale)
                lse[b, h, rows] = torch.logsumexp(logits, dim=-1)
                if not len(kept):
                    continue
                if tensors.v_scale is None:
                    weighted = torch.softmax(logits, dim=-1) @ v[b, kept, h].float()
                else:
                    weights, total = e4m3_weights(logits)
                    values = tensors.v[b, h, :dim, value_columns(kept)].float().T
                    weighted = weights @ values / total * tensors.v_scale[b, h]
                out[b, rows, h] = weighted.to(q.dtype)
    if tensors.key_offset is not None:
        lse += tensors.key_offset * scale
    return out, lse if return_lse else None
