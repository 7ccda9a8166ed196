"""Ordering axis: in which order tokens sit, so that those that attend to one another share blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dit_sparse.context import PlanContext


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
    """

    q: Tensor | None = None
    kv: Tensor | None = None
    q_clusters: Clusters | None = None
    kv_clusters: Clusters | None = None


class Ordering(Protocol):
    """Chooses the token order of one attention call."""

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """Order the video tokens.

        Args:
            q, k: ``[B, Nv, H, D]``, video tokens only, raster order, after RoPE.
            context: layout, site, carried state.
        """
        ...
