"""Whole clusters of queries against whole clusters of keys: blocks of variable length, run as a reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.kernels import VariableBlocks
from dit_sparse.orderings.base import Clusters
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.scores import cluster_mass


@dataclass(frozen=True)
class ClusterTopP:
    """Keep, per query cluster, the heaviest key clusters until their estimated mass exceeds p (SVG2, arXiv
    2505.18875): softmax over centroids, weighted by the size of the key cluster.

    With ``density`` the pairs of the layer with the most mass per query-key pair are kept instead, per
    sample, until the budget is spent. Text is one block on either side, kept with everything.

    Needs an ordering that clusters, such as :class:`~dit_sparse.orderings.SemanticClusters`.

    Args:
        p: mass in (0, 1]; ignored when ``density`` is given.
        density: fraction of query-key pairs to compute in (0, 1], those of text included; met to half of
            the pair of clusters that crosses it.
        min_ratio: every query cluster keeps at least this fraction of the key clusters, in [0, 1]; within
            ``density``.
    """

    p: float = 0.9
    density: float | None = None
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        check_density(self.density)
        if not 0.0 < self.p <= 1.0:
            raise ValueError(f"p must be in (0, 1], got {self.p}")
        if not 0.0 <= self.min_ratio <= 1.0:
            raise ValueError(f"min_ratio must be in [0, 1], got {self.min_ratio}")

    def select(self, given: SelectionInput) -> VariableBlocks:
        """Kept pairs of clusters, and the text's.

        Raises:
            ValueError: with an ordering that makes no clusters.
        """
        q_part, kv_part = clusters_of(given)
        mass = cluster_mass(q_part, kv_part, given.context.scale)
        ranked, columns = mass.sort(dim=-1, descending=True, stable=True)
        least = max(1, int(self.min_ratio * mass.shape[-1]))
        floor = torch.arange(mass.shape[-1], device=mass.device) < least
        if self.density is None:
            kept = floor | (ranked.cumsum(dim=-1) - ranked < self.p)
            return with_text_block(given, torch.zeros_like(kept).scatter_(-1, columns, kept))
        # Values are at most 1: the floor goes before all others, and within it the heaviest.
        ahead = torch.zeros_like(mass).scatter_(-1, columns, 2.0 * floor.expand(mass.shape))
        return spend_pairs(given, ahead + mass / kv_part.sizes[..., None, :].clamp(min=1), self.density)


@dataclass(frozen=True)
class ClusterErrorAware:
    """Keep the pairs of clusters with the largest estimated error of compensation per query-key pair
    (SVG-EAR, arXiv 2603.08982), see :func:`~dit_sparse.kernels.cluster_error`.

    Args:
        density: fraction of query-key pairs to compute in (0, 1], those of text included.
    """

    density: float = 0.25

    def __post_init__(self) -> None:
        check_density(self.density)

    def select(self, given: SelectionInput) -> VariableBlocks:
        """Kept pairs of clusters, and the text's.

        Raises:
            ValueError: with an ordering that makes no clusters.
        """
        q_part, kv_part = clusters_of(given)
        lengths = with_text_block(given, q_part.sizes[..., None] > kv_part.sizes[..., None, :])
        error = kernels.cluster_error(given.q, given.k, given.v, lengths, given.context.scale)
        # The error is that of a mean row: the rows of the cluster, and their cost, cancel.
        value = error / lengths.kv_lengths[..., None, :].clamp(min=1)
        value = value[..., : q_part.sizes.shape[-1], : kv_part.sizes.shape[-1]]
        return spend_pairs(given, value, self.density)


def clusters_of(given: SelectionInput) -> tuple[Clusters, Clusters]:
    """The clusters of queries and keys.

    Raises:
        ValueError: if the ordering made none.
    """
    q_part, kv_part = given.order.q_clusters, given.order.kv_clusters
    if q_part is None or kv_part is None:
        raise ValueError("selecting clusters needs an ordering that makes them: use SemanticClusters()")
    return q_part, kv_part


def with_text_block(given: SelectionInput, kept: Tensor) -> VariableBlocks:
    """Kept pairs of clusters, bool ``[B, H, Cq, Ck]``, and behind them the text, which is kept whole."""
    (q_part, kv_part), text = clusters_of(given), given.context.layout.text_tokens
    if not text:
        return VariableBlocks(q_part.sizes, kv_part.sizes, kept)
    q_lengths, kv_lengths = (F.pad(part.sizes, (0, 1), value=text) for part in (q_part, kv_part))
    return VariableBlocks(q_lengths, kv_lengths, F.pad(kept, (0, 1, 0, 1), value=True))


def spend_pairs(given: SelectionInput, value: Tensor, density: float) -> VariableBlocks:
    """The most valuable pair of every query cluster, and of the others the most valuable, per sample, until a
    fraction of all query-key pairs is spent.

    Args:
        value: float ``[B, H, Cq, Ck]``.
        density: of all N x N pairs of the heads, text included.
    """
    q_part, kv_part = clusters_of(given)
    layout, heads = given.context.layout, value.shape[1]
    first = torch.zeros_like(value, dtype=torch.bool)
    first.scatter_(-1, value.argmax(dim=-1, keepdim=True), True)
    text_pairs = layout.num_tokens**2 - layout.video_tokens**2
    budget = heads * (density * layout.num_tokens**2 - text_pairs)
    # float64 counts to 2^53; the pairs of 40 heads at 720p are more than float32 can tell apart.
    cost = (q_part.sizes[..., :, None] * kv_part.sizes[..., None, :].double()).flatten(1)
    best_first = value.masked_fill(first, torch.inf).flatten(1).argsort(dim=-1, descending=True, stable=True)
    ordered = cost.gather(-1, best_first)
    fits = ordered.cumsum(dim=-1) - ordered / 2 <= budget
    if density == 1.0:
        fits = torch.ones_like(fits)
    kept = torch.zeros_like(fits).scatter_(-1, best_first, fits).view(value.shape)
    return with_text_block(given, kept | first)
