"""Attention maps at block resolution: exact mass in any order, what a plan keeps of it, recall curves.

Nothing here is N x N: :func:`dit_sparse.kernels.block_mass` streams over the queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.kernels.pooling import block_lengths
from dit_sparse.kernels.variable_blocks import members
from dit_sparse.layout import BlockMap, TokenLayout
from dit_sparse.report.capture import CapturedCall

Size = tuple[int, int]


def heads_of(call: CapturedCall, heads: Sequence[int]) -> CapturedCall:
    """The call with some of its heads only."""
    index = torch.tensor(list(heads), device=call.q.device)
    q, k, v, out = (x.index_select(2, index) for x in (call.q, call.k, call.v, call.out))
    lse = call.lse.index_select(1, index)
    return CapturedCall(call.site, call.layout, call.scale, call.num_layers, q, k, v, out, lse)


def order_of(order: Tensor | None, heads: Sequence[int]) -> Tensor | None:
    """The orders ``[N]``, ``[H, N]`` or ``[B, H, N]`` of some heads; None, the model's own, stays None."""
    if order is None or order.dim() == 1:
        return order
    return order.index_select(-2, torch.tensor(list(heads), device=order.device))


def block_map_of(
    call: CapturedCall, block_size: Size, q_order: Tensor | None = None, kv_order: Tensor | None = None
) -> Tensor:
    """Share of the softmax in every pair of blocks, exact, mean over the queries of the row's block.

    Args:
        call: one sample.
        block_size: (query, key) block in tokens.
        q_order, kv_order: as in :class:`~dit_sparse.layout.AttentionPlan`; None is the model's own order.

    Returns:
        float32 ``[H, nQ, nK]`` on the CPU; rows sum to 1.
    """
    q = call.q if q_order is None else kernels.permute_rows(call.q, q_order)
    k = call.k if kv_order is None else kernels.permute_rows(call.k, kv_order)
    lse = call.lse if q_order is None else call.lse.gather(-1, q_order.expand(call.lse.shape))
    return kernels.block_mass(q, k, lse, block_size, call.scale)[0].cpu()


def kept_share(
    block_map: BlockMap | kernels.VariableBlocks, heads: Sequence[int], block_size: Size
) -> Tensor:
    """Share of the token pairs of every pair of fixed blocks that a plan keeps.

    Zero or one where the plan is made of these blocks; between them where it is made of clusters, which
    begin and end anywhere.

    Args:
        block_map: of a plan for one sample.
        heads: which of its heads.
        block_size: (query, key) block in tokens.

    Returns:
        float32 ``[heads, nQ, nK]`` on the CPU.
    """
    if isinstance(block_map, BlockMap):
        return block_map.to_mask()[0, list(heads)].float().cpu()
    mask = block_map.mask[0, list(heads)].float()
    sides = []
    for lengths, size in zip((block_map.q_lengths, block_map.kv_lengths), block_size):
        own = lengths[:1, list(heads)]
        tokens = int(own[0, 0].sum())
        member = members(own, tokens)[0]
        padded = torch.nn.functional.pad(member, (0, 0, 0, -tokens % size)).unflatten(1, (-1, size))
        sides.append(padded.sum(dim=2) / block_lengths(tokens, size, own.device)[:, None])
    return (sides[0] @ mask @ sides[1].mT).cpu()


def kept_density(block_map: BlockMap | kernels.VariableBlocks, heads: Sequence[int]) -> list[float]:
    """Fraction of block pairs (of token pairs for blocks of variable length) that each head keeps."""
    if isinstance(block_map, BlockMap):
        n_k = block_map.shape[-1]
        return (block_map.counts[0, list(heads)].double().mean(dim=-1) / n_k).tolist()
    q, kv = (x[0, list(heads)].double() for x in (block_map.q_lengths, block_map.kv_lengths))
    kept = torch.einsum("hi,hij,hj->h", q, block_map.mask[0, list(heads)].double(), kv)
    return (kept / (q.sum(-1) * kv.sum(-1))).tolist()


def oracle_recall(mass: Tensor, densities: Sequence[float], num_queries: int, block_q: int) -> Tensor:
    """The most that any choice of so many block pairs can hold of a head's softmax.

    Args:
        mass: ``[H, nQ, nK]`` from :func:`block_map_of`.
        densities: fractions of the pairs in (0, 1]; rounded to whole pairs, at least one.
        num_queries: N; the last block may have fewer queries than the others.
        block_q: query block in tokens.

    Returns:
        ``[H, densities]`` in [0, 1].
    """
    weight = block_lengths(num_queries, block_q, mass.device) / num_queries
    heaviest = (mass.double() * weight[:, None]).flatten(-2).sort(dim=-1, descending=True).values.cumsum(-1)
    counts = [max(1, round(density * heaviest.shape[-1])) - 1 for density in densities]
    return heaviest[:, counts].clamp(max=1.0)


def text_blocks(layout: TokenLayout, block: int, reordered: bool) -> tuple[int, int] | None:
    """First and last block that hold text; None without text. Reordered sequences have the text last."""
    if layout.text_tokens == 0:
        return None
    start = layout.video_tokens if reordered else layout.text_start
    return start // block, (start + layout.text_tokens - 1) // block
