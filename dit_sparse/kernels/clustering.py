"""Batched k-means over tokens, the clustering behind semantic orderings (SVG2, arXiv:2505.18875).

Lloyd's algorithm with Euclidean distance, for every (batch, head) at once. Nothing is read on the host, and
the same input gives the same clusters on the torch path: seeds sit at even strides over the sequence (so over
the video), sums are matrix products rather than atomic adds. Tokens pass through in chunks of bounded memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.kernels.checks import check_tokens
from dit_sparse.kernels.dispatch import installed

CHUNK_BYTES = 128 * 2**20
"""Bound on the float32 distances of one chunk of tokens, over all heads; the membership matrix takes as much
again."""
IMPLEMENTATIONS = ("auto", "flash_kmeans", "reference")


@dataclass(frozen=True)
class KMeansResult:
    """Clusters of the tokens of every (batch, head).

    Args:
        labels: int32 ``[B, H, N]``: the cluster whose centroid, as given in ``centroids``, is nearest.
        centroids: float32 ``[B, H, C, D]``; pass them back as the warm start of the next call.
        sizes: int32 ``[B, H, C]``: tokens per label, 0 for empty clusters.
    """

    labels: Tensor
    centroids: Tensor
    sizes: Tensor


def seed_centroids(x: Tensor, num_clusters: int) -> Tensor:
    """Tokens at the middles of ``num_clusters`` equal runs of the sequence: float32 ``[B, H, C, D]``."""
    tokens = x.shape[1]
    positions = (2 * torch.arange(num_clusters, device=x.device) + 1) * tokens // (2 * num_clusters)
    return x.index_select(1, positions).transpose(1, 2).float().contiguous()


def _chunks(tokens: int, row_bytes: int) -> list[slice]:
    step = max(1, CHUNK_BYTES // row_bytes)
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


def _pass_over(x: Tensor, centroids: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor]:
    """Assign every token; labels int32 ``[B, H, N]`` and float32 sizes ``[B, H, C]``.

    Args:
        sums: float32 ``[B, H, C, D]`` to which members are added, when given.
    """
    batch, tokens, heads, _ = x.shape
    clusters = centroids.shape[2]
    labels = torch.empty(batch, heads, tokens, dtype=torch.int32, device=x.device)
    sizes = torch.zeros(batch, heads, clusters, device=x.device)
    half_norms = centroids.square().sum(dim=-1)[:, :, None] / 2
    for chunk in _chunks(tokens, 4 * batch * heads * clusters):
        points = x[:, chunk].transpose(1, 2).float()
        # |x - c|^2 / 2 up to |x|^2 / 2, which is the same for every c.
        nearest = (half_norms - points @ centroids.transpose(-1, -2)).argmin(dim=-1)
        labels[:, :, chunk] = nearest.int()
        ones = torch.ones((), device=x.device).expand(nearest.shape)
        sizes.scatter_add_(-1, nearest, ones)
        if sums is not None:
            member = torch.zeros(*nearest.shape, clusters, device=x.device).scatter_(
                -1, nearest[..., None], 1.0
            )
            sums += member.transpose(-1, -2) @ points
    return labels, sizes


def _lloyd(x: Tensor, centroids: Tensor, iterations: int) -> KMeansResult:
    previous: Tensor | None = None
    for _ in range(iterations):
        sums = torch.zeros_like(centroids)
        labels, sizes = _pass_over(x, centroids, sums)
        if x.device.type == "cpu":  # on a GPU the question would wait for the device
            if previous is not None and torch.equal(labels, previous):
                return KMeansResult(labels, centroids, sizes.int())  # converged: nothing would move any more
            previous = labels
        centroids = torch.where((sizes > 0)[..., None], sums / sizes.clamp(min=1)[..., None], centroids)
    labels, sizes = _pass_over(x, centroids, None)
    return KMeansResult(labels, centroids, sizes.int())


def _check(x: Tensor, num_clusters: int, centroids: Tensor | None, iterations: int) -> None:
    check_tokens("x", x)
    batch, tokens, heads, dim = x.shape
    if not 1 <= num_clusters <= tokens:
        raise ValueError(f"num_clusters must lie in 1..{tokens}, the number of tokens, got {num_clusters}")
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    expected = (batch, heads, num_clusters, dim)
    if centroids is not None and (tuple(centroids.shape) != expected or centroids.device != x.device):
        raise ValueError(
            f"centroids must be [B, H, C, D] = {expected} on {x.device}, "
            f"got {tuple(centroids.shape)} on {centroids.device}"
        )


@torch.no_grad()
def kmeans(
    x: Tensor, num_clusters: int, *, centroids: Tensor | None = None, iterations: int = 10, impl: str = "auto"
) -> KMeansResult:
    """Cluster the tokens of every head: ``iterations`` rounds of Lloyd's algorithm, then a last assignment.

    A round assigns every token to its nearest centroid and moves the centroids to the means of their tokens;
    empty clusters keep theirs. ``iterations=0`` only assigns. The cost is ``iterations + 1`` assignments.

    Args:
        x: ``[B, N, H, D]``, any strides with a contiguous last dimension.
        num_clusters: C, in 1..N.
        centroids: warm start ``[B, H, C, D]``; evenly spread tokens when None.
        iterations: rounds, >= 0.
        impl: "auto" (flash-kmeans on a GPU where it is installed), "flash_kmeans" or "reference".
            flash-kmeans sums by atomic adds, in no fixed order: last bits may differ from run to run.

    Raises:
        ValueError: for shapes that do not fit, an unknown ``impl``, or flash-kmeans where it cannot run.
    """
    _check(x, num_clusters, centroids, iterations)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown impl {impl!r}: choose one of {list(IMPLEMENTATIONS)}")
    usable = x.is_cuda and installed("flash_kmeans") and installed("triton")
    if impl == "flash_kmeans" and not usable:
        raise ValueError(
            f"impl 'flash_kmeans' needs a GPU, triton and pip install flash-kmeans; x is on {x.device}"
        )
    start = seed_centroids(x, num_clusters) if centroids is None else centroids.float()
    if usable and impl != "reference":
        from dit_sparse.kernels import flash_clustering

        return flash_clustering.lloyd(x, start, iterations)
    return _lloyd(x, start, iterations)


def sort_by_label(labels: Tensor) -> Tensor:
    """Order that brings the tokens of each cluster together, clusters ascending, tokens within one as they
    were.

    Args:
        labels: integers ``[..., N]``.

    Returns:
        int64 ``[..., N]``, ready for :func:`dit_sparse.kernels.permute_rows`.
    """
    return torch.argsort(labels, dim=-1, stable=True)
