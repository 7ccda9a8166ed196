"""SVG2: semantic-aware permutation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.orderings import SemanticClusters
from dit_sparse.schedule import DenseLayers, DenseSteps
from dit_sparse.selectors import ClusterTopP, Selector, TopP
from dit_sparse.selectors.model_budget import ModelScope
from dit_sparse.selectors.scores import Score

Q_CLUSTERS = {"hunyuan_video": 400}
DENSE_STEPS = {"hunyuan_video": 0.1}
"""By model family, where they differ from Wan's 300 and 0.2."""


@register_method
@dataclass(frozen=True)
class SVG2(ComposedConfig):
    """SVG2, semantic-aware permutation: cluster q and k apart, score clusters by centroid, keep top-p.

    Deviations from the paper: with ``execution="fixed"`` the cluster-sorted sequences are cut into fixed
    blocks, so that the fast fixed-block kernels run, and the centroids' mass is spread over those blocks;
    top-p therefore counts blocks, not clusters. ``execution="clusters"`` attends whole clusters to whole
    clusters as in the paper; it is a reference to compare with and computes all logits. In both,
    centroids are kept per guidance branch and dropped at the start of a generation, the number of
    clusters shrinks with the sequence, padding text is trimmed, and ``density`` replaces ``top_p`` by the
    pairs of most mass that meet a budget.

    Args:
        top_p: estimated mass to keep per row, in (0, 1].
        density: fraction of blocks (of query-key pairs for clusters) to compute, in (0, 1]; overrides
            ``top_p``.
        min_kc_ratio: every row keeps at least this fraction of its blocks or clusters (within ``density``).
        q_clusters, kv_clusters: k-means clusters; None takes the paper's: Wan 300/1000, HunyuanVideo
            400/1000.
        first_iterations, iterations: Lloyd iterations without and with carried centroids.
        score: "centroid" as in the paper, "pooled" over the fixed blocks, or "mean_key": every query against
            the mean keys of the fixed blocks. Clusters are always scored by centroid.
        scope: what shares a ``density`` of fixed blocks: "layer", "model", "head" or "row".
        execution: "fixed" or "clusters".

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
    scope: ModelScope = "layer"
    execution: Literal["fixed", "clusters"] = "fixed"
    dense_steps: DenseSteps | None = None
    dense_layers: DenseLayers | float = 0.03

    def __post_init__(self) -> None:
        if self.execution not in ("fixed", "clusters"):
            raise ValueError(f"execution must be 'fixed' or 'clusters', got {self.execution!r}")
        asked = (self.score, self.scope, self.precision)
        if self.execution == "clusters" and asked != ("centroid", "layer", "native"):
            raise ValueError(
                "execution='clusters' needs score='centroid', scope='layer' and precision='native', got "
                f"{asked}: use execution='fixed'"
            )

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose semantic ordering and top-p."""
        selector: Selector = TopP(self.top_p, self.density, self.min_kc_ratio, self.score, self.scope)
        if self.execution == "clusters":
            selector = ClusterTopP(self.top_p, self.density, self.min_kc_ratio)
        return self.compose(
            selector,
            paper_clusters(
                model,
                self.q_clusters,
                kv_clusters=self.kv_clusters,
                first_iterations=self.first_iterations,
                iterations=self.iterations,
            ),
            dense_steps=paper_guard(model),
        )


def paper_clusters(model: ModelInfo, q_clusters: int | None = None, **fields: int) -> SemanticClusters:
    """The clustering of SVG2's experiments with a model family; ``q_clusters`` None takes theirs."""
    return SemanticClusters(q_clusters or Q_CLUSTERS.get(model.family, 300), **fields)


def paper_guard(model: ModelInfo) -> float:
    """The fraction of first steps that SVG2 leaves dense."""
    return DENSE_STEPS.get(model.family, 0.2)
