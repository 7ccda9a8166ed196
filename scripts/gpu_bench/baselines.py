"""Attention of other libraries, timed beside ours: FlexAttention on the same block map, sageattention.

They are no yardstick for a speed-up: that is the fastest dense bf16 kernel,
:func:`gpu_bench.harness.dense_baselines`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from dit_sparse.kernels.dispatch import installed
from dit_sparse.layout import BlockMap


def flex_mask(block_map: BlockMap) -> BlockMask:
    """The block map for FlexAttention: every kept block is a full one, so that its kernel evaluates no token
    mask. The eager definition knows nothing but the token mask, so it says the same."""
    kept, (q_block, k_block) = block_map.to_mask(), block_map.block_size

    def token_mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return kept[batch, head, query // q_block, key // k_block]

    counts = block_map.counts.contiguous()
    # FlexAttention wants one slot for every key block; what lies behind the count is not read.
    spare = block_map.shape[-1] - block_map.indices.shape[-1]
    indices = torch.nn.functional.pad(block_map.indices, (0, spare)).contiguous()
    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        indices,
        counts,
        indices,
        BLOCK_SIZE=block_map.block_size,
        mask_mod=token_mask,
        seq_lengths=(block_map.num_queries, block_map.num_keys),
    )


@lru_cache
def _compiled_flex() -> Callable[..., Tensor]:
    # fullgraph: beyond the recompile limit the eager definition would take over, with all N x N scores.
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def flex_sparse(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap) -> Callable[[], Tensor]:
    """A call of FlexAttention on the kept blocks, out ``[B, H, N, D]``; compiled on a GPU, the eager
    definition on a CPU.

    Args:
        q, k, v: ``[B, N, H, D]``.
        block_map: kept pairs.
    """
    heads_first = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    mask = flex_mask(block_map)
    attend: Callable[..., Tensor] = _compiled_flex() if q.is_cuda else flex_attention  # type: ignore[assignment]
    return lambda: attend(*heads_first, block_mask=mask)


def sage_refusal(device: str) -> str | None:
    """Why sageattention cannot run here, or None."""
    if not installed("sageattention"):
        return "sageattention is not installed: pip install sageattention==1.0.6"
    if device != "cuda":
        return f"sageattention needs a GPU, the tensors are on {device}"
    return None


def sage_dense(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """A call of sageattention (1.0.6: Triton, int8 QK) over all keys, out ``[B, H, N, D]``.

    Args:
        q, k, v: ``[B, N, H, D]``.
    """
    from sageattention import sageattn

    # Its own layout, and copies: it is timed at its best and cannot change what the others read.
    heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    return lambda: sageattn(*heads_first, tensor_layout="HND", is_causal=False)
