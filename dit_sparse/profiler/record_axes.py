"""The six axis orders of every head of a call: PARO's two scores, and the error that decides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation
from dit_sparse.orderings import AXIS_ORDERS, axis_errors, axis_order, spread_rows, with_text

TINY = 1e-3
"""Attention weights below it count as none (PAROAttention, arXiv 2506.16054)."""
NEARLY_EMPTY = 0.9
"""Share of such weights from which on a block counts as sparse."""
FLOOR = 1e-30


@dataclass(frozen=True)
class AxisFigures:
    """Six axis orders of some heads.

    Args:
        error: float32 ``[B, heads, 6]``, squared error of the compared queries when the heaviest blocks are
            kept, summed over tokens and channels.
        energy: float32 ``[B, heads, 6]``, their dense output squared.
        sparse, incoherence: float32 ``[heads, 6]``, see :func:`paro_scores`; mean over the batch.
    """

    error: Tensor
    energy: Tensor
    sparse: Tensor
    incoherence: Tensor


def axis_figures(
    seen: Observation, heads: slice, density: float, query_blocks: int, score_blocks: int
) -> AxisFigures:
    """Try the six orders on some heads of an observed call.

    Args:
        seen: the call.
        heads: which.
        density: fraction of blocks at which the errors are compared.
        query_blocks: blocks of queries, evenly spread, compared by error.
        score_blocks: blocks of queries, evenly spread, that the scores are taken from.
    """
    context = seen.context
    layout, block = context.layout, context.block_size
    q, k, v, out = (x[:, :, heads] for x in (seen.q, seen.k, seen.v, seen.out))
    lse = seen.lse[:, heads]
    missed, energy = axis_errors(q, k, v, out, lse, context, density, query_blocks)
    rows = spread_rows(layout.num_tokens, block[0], score_blocks, q.device)
    scores = []
    for axes in AXIS_ORDERS:
        order = with_text(axis_order(layout.grid, axes, q.device), layout)
        queries, keys = q.index_select(1, order[rows]), kernels.permute_rows(k, order)
        scores.append(paro_scores(queries, keys, lse.index_select(-1, order[rows]), block, context.scale))
    sparse, incoherence = (torch.stack(x, dim=-1).mean(dim=0) for x in zip(*scores, strict=True))
    return AxisFigures(missed.movedim(0, -1), energy.movedim(0, -1), sparse, incoherence)


@torch.no_grad()
def paro_scores(
    q: Tensor, k: Tensor, lse: Tensor, block_size: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor]:
    """PAROAttention's scores of a token order (arXiv 2506.16054), on the blocks of the given queries.

    M_sparse is the share of blocks with at least :data:`NEARLY_EMPTY` of their weights below :data:`TINY`;
    M_quant the mean over blocks of the largest weight by the mean one: what a common scale per block costs.

    Args:
        q: ``[B, R, H, D]``, whole blocks of queries, the last one may be ragged.
        k: ``[B, N, H, D]``.
        lse: float32 ``[B, H, R]``, over all keys.
        block_size: (query, key) block in tokens.
        scale: factor on the logits.

    Returns:
        M_sparse in [0, 1] and M_quant >= 1 (0 for a block without any weight), float32 ``[B, H]`` each.
    """
    (batch, queries, heads, _), (block_q, block_k) = q.shape, block_size
    pad = -k.shape[1] % block_k
    lengths = torch.full((-(-k.shape[1] // block_k),), block_k, device=q.device)
    lengths[-1] -= pad
    starts = range(0, queries, block_q)
    sparse, incoherence = (torch.empty(2, len(starts), batch, heads, device=q.device)).unbind()
    for h in range(heads):
        keys = k[:, :, h].float().transpose(-1, -2) * scale
        for i, start in enumerate(starts):  # one block's weights at a time: [B, rows, N]
            part = slice(start, min(start + block_q, queries))
            rows = part.stop - part.start
            share = torch.exp(q[:, part, h].float() @ keys - lse[:, h, part, None])
            blocks = torch.nn.functional.pad(share, (0, pad)).unflatten(-1, (-1, block_k))
            # Padding looks tiny: it is taken off again.
            tiny = (blocks < TINY).sum(dim=(1, 3)) - (block_k - lengths) * rows
            mean = blocks.sum(dim=(1, 3)) / (lengths * rows)
            sparse[i, :, h] = (tiny >= NEARLY_EMPTY * lengths * rows).float().mean(dim=-1)
            incoherence[i, :, h] = (blocks.amax(dim=(1, 3)) / mean.clamp(min=FLOOR)).mean(dim=-1)
    return sparse.mean(dim=0), incoherence.mean(dim=0)
