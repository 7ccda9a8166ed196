"""SVG-EAR: compensation by means, and a budget that goes where the means are farthest off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dit_sparse.engine import SparseMethod
from dit_sparse.methods.base import ComposedConfig, ModelInfo, register_method
from dit_sparse.methods.svg2 import paper_clusters, paper_guard
from dit_sparse.orderings import OrderingName, ordering_named
from dit_sparse.schedule import DenseLayers, DenseSteps
from dit_sparse.selectors import ClusterErrorAware, ErrorAware, Selector
from dit_sparse.selectors.error_aware import Estimate
from dit_sparse.selectors.model_budget import ModelScope


@register_method
@dataclass(frozen=True)
class SVGEAR(ComposedConfig):
    """SVG-EAR, skipped blocks enter through their means; blocks whose means would err most are computed.

    q and k are clustered apart as in SVG2. The error of a pair is estimated with the mean query: the
    distance of every key's exact contribution from that of the mean key and value, relative to the row's
    softmax denominator and to the cost of the pair.

    Deviations from the paper: with ``execution="fixed"`` the cluster-sorted sequences are cut into fixed
    blocks for the fast kernels; ``execution="clusters"`` is the paper's and runs as a reference at any speed.
    Errors are relative to the row's denominator, so that rows and heads compete for one budget. Clusters and
    dense guard are SVG2's. ``estimate="moments"`` is our own, from the variances of a block's keys and
    values, for every query.

    Args:
        density: fraction of blocks (of query-key pairs for clusters) to compute, in (0, 1].
        estimate: "centroid" as in the paper, or "moments".
        ordering: "clusters" as in the paper, "raster", "patches" or "cubes".
        scope: what shares the budget: "layer", "model", "head" or "row".
        execution: "fixed" or "clusters".
    """

    name: ClassVar[str] = "svg_ear"
    citation: ClassVar[str] = "SVG-EAR, arXiv 2603.08982"

    estimate: Estimate = "centroid"
    ordering: OrderingName = "clusters"
    scope: ModelScope = "layer"
    execution: Literal["fixed", "clusters"] = "fixed"
    correction: str = "pooled"
    dense_steps: DenseSteps | None = None
    dense_layers: DenseLayers | float | None = 0.03

    def __post_init__(self) -> None:
        if self.execution not in ("fixed", "clusters"):
            raise ValueError(f"execution must be 'fixed' or 'clusters', got {self.execution!r}")
        asked = (self.ordering, self.estimate, self.scope, self.precision)
        if self.execution == "clusters" and asked != ("clusters", "centroid", "layer", "native"):
            raise ValueError(
                "execution='clusters' needs ordering='clusters', estimate='centroid', scope='layer' and "
                f"precision='native', got {asked}: use execution='fixed'"
            )

    def build(self, model: ModelInfo) -> SparseMethod:
        """Compose the named ordering, error-aware routing and pooled compensation."""
        selector: Selector = ErrorAware(self.target_density, self.scope, self.estimate)
        if self.execution == "clusters":
            selector = ClusterErrorAware(self.target_density)
        ordering = paper_clusters(model) if self.ordering == "clusters" else ordering_named(self.ordering)
        return self.compose(selector, ordering, dense_steps=paper_guard(model))
