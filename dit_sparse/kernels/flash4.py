"""Block-sparse attention on FlashAttention-4 (``flash-attn-4``, CuTe DSL): the fastest backend on Hopper.

The block map is handed over as *full* blocks (no token mask inside a block) beside an empty list of masked
blocks. The kernel walks the list from its end and masks the ragged key block only there, which is right
because our indices ascend. Rows that keep nothing come back as zeros with lse = -inf (its softmax
finalisation does that; our GPU tests hold it to it). Verified by reading version 4.0.0b36.

Limits of that version: on sm_90 the key block must equal the kernel's tile (a multiple of 16 up to 128) and
the query block a multiple of 64; on sm_100 the kernel works on 256 queries at once, so the query block must
be a multiple of 256 and the key block of 128; head sizes must be multiples of 8.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dit_sparse.layout import BlockMap


@lru_cache
def import_error() -> str | None:
    """Why the installed library does not import (a missing CUTLASS runtime, say), or None; tried once."""
    try:
        import flash_attn.cute  # noqa: F401
    except Exception as error:  # a broken install of a compiled package can raise anything
        return f"flash-attn-4 is installed but does not import ({type(error).__name__}: {error}"[:240] + ")"
    return None


def limits(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int, block_size: tuple[int, int]
) -> str | None:
    """Why FlashAttention-4 cannot run this, or None when it can.

    Args:
        capability: CUDA compute capability, e.g. (9, 0).
        dtype, head_dim: of q, k and v.
        block_size: (query, key) block in tokens.
    """
    block_q, block_k = block_size
    if capability[0] not in (9, 10):
        return f"needs compute capability 9.0 or 10.x, this GPU has {capability[0]}.{capability[1]}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, got {dtype}"
    if head_dim % 8 or not 8 <= head_dim <= 128:
        return f"needs a head size that is a multiple of 8 up to 128, got {head_dim}"
    if capability[0] == 9 and (block_q % 64 or block_k % 16 or block_k > 128):
        return f"needs query blocks of 64 n and key blocks of 16 n up to 128 on sm_90, got {block_size}"
    if capability[0] == 10 and (block_q % 256 or block_k % 128):
        return f"needs query blocks of 256 n and key blocks of 128 n on sm_100, got {block_size}"
    return None


def _sparsity(block_map: BlockMap) -> Any:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    indices, counts = block_map.indices.contiguous(), block_map.counts.contiguous()
    return BlockSparseTensorsTorch(
        # The list of masked blocks is empty: with counts of zero, its indices are never read.
        mask_block_cnt=torch.zeros_like(counts),
        mask_block_idx=indices,
        full_block_cnt=counts,
        full_block_idx=indices,
        block_size=block_map.block_size,
    )


def forward(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, *, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """See :func:`dit_sparse.kernels.block_sparse_attention`; compiles for 1-2 s per configuration at first
    use."""
    from flash_attn.cute import flash_attn_func

    with torch.cuda.device_of(q):
        out, lse = flash_attn_func(
            q, k, v, softmax_scale=scale, block_sparse_tensors=_sparsity(block_map), return_lse=return_lse
        )
    return out, lse if return_lse else None


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention by the same library: the baseline that benchmarks divide by."""
    from flash_attn.cute import flash_attn_func

    with torch.cuda.device_of(q):
        return flash_attn_func(q, k, v)[0]
