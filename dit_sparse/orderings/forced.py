"""Pairs that every plan keeps, wherever the order puts them."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.layout import ceil_div


def forced_pairs(
    num_tokens: int,
    text_start: int,
    text_tokens: int,
    block_size: tuple[int, int],
    device: torch.device,
    *,
    diagonal: bool = True,
) -> Tensor:
    """Bool ``[nQ, nK]``: rows and columns of blocks that hold text, and the pairs that overlap the diagonal.

    Args:
        num_tokens: N of both axes.
        text_start, text_tokens: run of text positions in the reordered sequence.
        block_size: (query block, key block).
        diagonal: also force the pairs that cover a query's own position; meaningless where q and k are
            ordered apart.
    """
    edges = []
    for size in block_size:
        start = torch.arange(ceil_div(num_tokens, size), device=device) * size
        edges.append((start, (start + size).clamp(max=num_tokens)))
    (q_start, q_end), (k_start, k_end) = edges
    text_end = text_start + text_tokens
    q_text = (q_start < text_end) & (q_end > text_start)
    k_text = (k_start < text_end) & (k_end > text_start)
    forced = q_text[:, None] | k_text[None, :]
    if diagonal:
        forced = forced | ((q_start[:, None] < k_end[None, :]) & (q_end[:, None] > k_start[None, :]))
    return forced
