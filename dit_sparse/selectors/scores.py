"""Estimates of the softmax mass of every block pair, from which the dynamic selectors choose."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.orderings.base import Clusters
from dit_sparse.selectors.base import SelectionInput

Score = Literal["pooled", "mean_key", "centroid"]


def estimate_mass(given: SelectionInput, score: Score) -> Tensor:
    """Estimated attention mass ``[B, H, nQ, nK]`` float32, rows sum to 1.

    ``"mean_key"`` lets every query meet the mean key of every block and averages the resulting softmax over
    the query block: 1 / (key block) of the dense work, and closest to the truth (own measurement,
    docs/findings.md). ``"pooled"`` takes the softmax over key-block means, weighted by block size
    (Draft-Attention, arXiv 2505.14708). ``"centroid"`` takes the softmax over cluster centroids, weighted by
    cluster size (SVG2, arXiv 2505.18875), and spreads it over the fixed blocks in proportion to the tokens
    that each block holds of each cluster; this keeps the clusters' resolution where a block mixes several of
    them.

    Raises:
        ValueError: ``"centroid"`` with an ordering that makes no clusters, or an unknown score.
    """
    if score == "pooled":
        context = given.context
        return kernels.pooled_scores(given.q, given.k, context.block_size, context.scale).softmax(dim=-1)
    if score == "mean_key":
        return kernels.mean_key_mass(given.q, given.k, given.context.block_size, given.context.scale)
    if score != "centroid":
        raise ValueError(f"unknown score {score!r}: use 'pooled', 'mean_key' or 'centroid'")
    q_part, kv_part = given.order.q_clusters, given.order.kv_clusters
    if q_part is None or kv_part is None:
        raise ValueError(
            "score 'centroid' needs an ordering that clusters tokens; use score='pooled' with this one"
        )
    (q_size, k_size), (n_q, n_k) = given.context.block_size, given.forced.shape
    q_overlap = _overlap(q_part, given.order.q, q_size, n_q, given.video_start)
    kv_overlap = _overlap(kv_part, given.order.kv, k_size, n_k, given.video_start)
    rows = q_overlap / q_overlap.sum(dim=-1, keepdim=True).clamp(min=1)
    columns = kv_overlap / kv_part.sizes[..., None, :].clamp(min=1)
    mass = cluster_mass(q_part, kv_part, given.context.scale)
    return rows @ mass @ columns.transpose(-1, -2)


def cluster_mass(q_part: Clusters, kv_part: Clusters, scale: float) -> Tensor:
    """Softmax over key centroids weighted by cluster size, for every query centroid: float32
    ``[B, H, Cq, Ck]``, 0 for empty key clusters."""
    logits = q_part.centroids @ kv_part.centroids.transpose(-1, -2) * scale
    return (logits + kv_part.sizes[..., None, :].log()).softmax(dim=-1)


def _overlap(part: Clusters, order: Tensor | None, size: int, blocks: int, video_start: int) -> Tensor:
    """float32 ``[B, H, blocks, C]``: how many tokens each block of the reordered sequence holds of each
    cluster."""
    assert order is not None  # clusters come with the order made from them
    labels = part.labels.gather(-1, order.expand(part.labels.shape)).long()
    clusters = part.centroids.shape[-2]
    block = (torch.arange(labels.shape[-1], device=labels.device) + video_start) // size
    counts = labels.new_zeros(*labels.shape[:-1], blocks * clusters, dtype=torch.float32)
    counts.scatter_add_(-1, block * clusters + labels, torch.ones_like(labels, dtype=torch.float32))
    return counts.unflatten(-1, (blocks, clusters))
