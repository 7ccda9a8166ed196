"""Semantic ordering: tokens sorted by the k-means cluster of their query or key."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import PlanContext
from dit_sparse.orderings.base import Clusters, TokenOrder


@dataclass(frozen=True)
class SemanticClusters:
    """Cluster q and k separately per head with Euclidean k-means and sort by label (SVG2, arXiv 2505.18875).

    Centroids are carried from step to step in the layer's state, one set per guidance branch, so that after
    the first step a few Lloyd iterations are enough. The number of clusters is bounded by the paper's tokens
    per cluster, so that short sequences do not end up with a cluster per token.

    Args:
        q_clusters, kv_clusters: number of clusters, >= 1.
        min_tokens_per_q_cluster, min_tokens_per_kv_cluster: lower bound of the mean cluster size, >= 1.
        first_iterations: Lloyd iterations without carried centroids, >= 0.
        iterations: Lloyd iterations from carried centroids, >= 0.
    """

    q_clusters: int = 300
    kv_clusters: int = 1000
    min_tokens_per_q_cluster: int = 32
    min_tokens_per_kv_cluster: int = 16
    first_iterations: int = 50
    iterations: int = 2

    def __post_init__(self) -> None:
        for name in ("q_clusters", "kv_clusters", "min_tokens_per_q_cluster", "min_tokens_per_kv_cluster"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("first_iterations", "iterations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        """``[B, H, Nv]`` for q and for k, with the clusters they came from."""
        q_part = self._cluster(q, "semantic.q", self.q_clusters, self.min_tokens_per_q_cluster, context)
        kv_part = self._cluster(k, "semantic.kv", self.kv_clusters, self.min_tokens_per_kv_cluster, context)
        return TokenOrder(
            kernels.sort_by_label(q_part.labels), kernels.sort_by_label(kv_part.labels), q_part, kv_part
        )

    def _cluster(
        self, x: Tensor, key: str, most: int, tokens_per_cluster: int, context: PlanContext
    ) -> Clusters:
        count = max(1, min(most, x.shape[1] // tokens_per_cluster))
        carried = context.state.values.get(key)
        result = kernels.kmeans(
            x,
            count,
            centroids=carried,
            iterations=self.first_iterations if carried is None else self.iterations,
        )
        # Carried in the inputs' precision: half the memory, and Lloyd's iterations forget the rounding.
        context.state.values[key] = result.centroids.to(x.dtype)
        return Clusters(result.labels, result.centroids, result.sizes)
