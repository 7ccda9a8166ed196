"""Ordering axis: in which order tokens sit, so that those that attend to one another share blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, overload

import torch
from torch import Tensor

from dit_sparse.context import PlanContext
from dit_sparse.layout import TokenLayout


@dataclass(frozen=True)
class Clusters:
    """A k-means partition of the video tokens of every head.

    Args:
        labels: int32 ``[B, H, Nv]``, cluster of every video token in raster order.
        centroids: float32 ``[B, H, C, D]``.
        sizes: int32 ``[B, H, C]``, tokens per cluster.
    """

    labels: Tensor
    centroids: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class TokenOrder:
    """Permutations of the video tokens (text is never reordered: the engine puts it last).

    Args:
        q, kv: int64 ``[Nv]``, ``[H, Nv]`` or ``[B, H, Nv]``; position i holds video token ``order[..., i]``.
            None for both is raster order.
        q_clusters, kv_clusters: the partition the order came from, where it came from one.
        runs: token counts of the cells that follow one another in the order, where it is a partition of the
            grid.
        candidates, choice: where every head took one of a few orders that depend on the grid alone: those
            orders, ``[Nv]`` each, and the index of every head's, int64 ``[B, H]``.
    """

    q: Tensor | None = None
    kv: Tensor | None = None
    q_clusters: Clusters | None = None
    kv_clusters: Clusters | None = None
    runs: tuple[int, ...] | None = None
    candidates: tuple[Tensor, ...] = ()
    choice: Tensor | None = None

    @classmethod
    def among(cls, candidates: tuple[Tensor, ...], choice: Tensor) -> TokenOrder:
        """Every head in one of a few orders.

        Args:
            candidates: int64 ``[Nv]`` each.
            choice: index of every head's, int64 ``[B, H]``.
        """
        order = torch.stack(candidates)[choice]
        return cls(order, order, candidates=candidates, choice=choice)


class Ordering(Protocol):
    """Chooses the token order of one attention call."""

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """Order the video tokens.

        Args:
            q, k: ``[B, Nv, H, D]``, video tokens only, raster order, after RoPE.
            context: layout, site, carried state.
        """
        ...


@overload
def with_text(order: Tensor, layout: TokenLayout) -> Tensor: ...


@overload
def with_text(order: Tensor | None, layout: TokenLayout) -> Tensor | None: ...


def with_text(order: Tensor | None, layout: TokenLayout) -> Tensor | None:
    """Extend an order of the video tokens, ``[..., Nv]``, to all N tokens: video first, then the text in its
    own order. None, the model's own order, stays None."""
    if order is None or layout.text_tokens == 0:
        return order
    text = torch.arange(layout.text_start, layout.text_start + layout.text_tokens, device=order.device)
    return torch.cat([order + layout.video_start, text.expand(*order.shape[:-1], -1)], dim=-1)
