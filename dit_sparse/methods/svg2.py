"""SVG2: semantic-aware permutation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import SemanticClusters
from dit_sparse.schedule import DenseLayers, DenseSteps
from dit_sparse.selectors import TopP
from dit_sparse.selectors.scores import Score

_Q_CLUSTERS = {"hunyuan_video": 400}
_DENSE_STEPS = {"hunyuan_video": 0.1}


@register_method
@dataclass(frozen=True)
class SVG2(ComposedConfig):
    """SVG2, semantic-aware permutation: cluster q and k apart, score clusters by centroid, keep top-p.

    Deviations from the paper: the cluster-sorted sequences are cut into fixed blocks, so that the fast
    fixed-block kernels run, and the centroids' mass is spread over those blocks; top-p therefore counts
    blocks, not clusters. Centroids are kept per guidance branch and dropped at the start of a generation. The
    number of clusters shrinks with the sequence. ``density`` replaces ``top_p`` by the threshold that meets a
    budget.

    Args:
        top_p: estimated mass to keep per row, in (0, 1].
        density: fraction of blocks to compute, in (0, 1]; overrides ``top_p``.
        min_kc_ratio: every row keeps at least this fraction of its blocks (within ``density``).
        q_clusters, kv_clusters: k-means clusters; None takes the paper's: Wan 300/1000, HunyuanVideo
            400/1000.
        first_iterations, iterations: Lloyd iterations without and with carried centroids.
        score: "centroid" as in the paper, "pooled" over the fixed blocks, or "mean_key": every query against
            the mean keys of the fixed blocks.

    The dense guard is the paper's: the first 20% of the steps, 10% for HunyuanVideo, and 3% of the layers.
    """

    name: ClassVar[str] = "svg2"
    citation: ClassVar[str] = "Sparse VideoGen2, arXiv 2505.18875"

    top_p: float = 0.9
    density: float | None = None
    min_kc_ratio: float = 0.1
    q_clusters: int | None = None
    kv_clusters: int = 1000
    first_iterations: int = 50
    iterations: int = 2
    score: Score = "centroid"
    dense_steps: DenseSteps | None = None
    dense_layers: DenseLayers | float = 0.03

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose semantic ordering and top-p."""
        q_clusters = _Q_CLUSTERS.get(model.family, 300) if self.q_clusters is None else self.q_clusters
        return self.compose(
            TopP(self.top_p, self.density, self.min_kc_ratio, self.score),
            SemanticClusters(
                q_clusters,
                self.kv_clusters,
                first_iterations=self.first_iterations,
                iterations=self.iterations,
            ),
            dense_steps=_DENSE_STEPS.get(model.family, 0.2),
        )
