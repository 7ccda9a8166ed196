# mypy: disallow-untyped-calls=False
"""Lloyd's algorithm on the kernels of flash-kmeans (``flash-kmeans`` 0.3.1, Triton): fused distance and
argmin.

Its own driver compares the centroids' movement with a tolerance on the host, every iteration, and cannot run
zero iterations; so only its two kernels are used here, the assignment and the sorted centroid sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.clustering import KMeansResult


def lloyd(x: Tensor, centroids: Tensor, iterations: int) -> KMeansResult:
    """``iterations`` rounds and a last assignment; see :func:`dit_sparse.kernels.kmeans`.

    Args:
        x: ``[B, N, H, D]`` on a CUDA device.
        centroids: float32 ``[B, H, C, D]``, where to start. Distances are taken to their copies rounded to
            x's dtype.
    """
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton
    from flash_kmeans.centroid_update_triton import triton_centroid_update_sorted_euclid

    batch, tokens, heads, dim = x.shape
    clusters = centroids.shape[2]
    points = x.transpose(1, 2).reshape(batch * heads, tokens, dim)  # a view when B == 1
    means = centroids.reshape(batch * heads, clusters, dim)
    # The kernel clamps |x|^2 + |c|^2 - 2 x.c at zero, so it needs the token's true norm; no float32 copy of x
    # is made.
    norms = torch.linalg.vector_norm(points, dim=-1, dtype=torch.float32).square()

    def assign() -> Tensor:
        return euclid_assign_triton(points, means.to(x.dtype), norms)

    def tally(labels: Tensor, sums: Tensor) -> Tensor:
        sizes = torch.zeros(batch * heads, clusters, dtype=torch.int32, device=x.device)
        triton_centroid_update_sorted_euclid(
            points, labels, means, centroid_sums=sums, centroid_cnts=sizes, calculate_new=False
        )
        return sizes

    with torch.cuda.device_of(x):
        for _ in range(iterations):
            sums = torch.zeros_like(means)
            sizes = tally(assign(), sums)[..., None]
            means = torch.where(sizes > 0, sums / sizes.clamp(min=1), means)
        labels = assign()
        ones = torch.ones((), dtype=torch.int32, device=x.device).expand(labels.shape)
        sizes = torch.zeros(batch * heads, clusters, dtype=torch.int32, device=x.device)
        sizes.scatter_add_(-1, labels.long(), ones)
    return KMeansResult(
        labels.view(batch, heads, tokens).int(),
        means.view(batch, heads, clusters, dim),
        sizes.view(batch, heads, clusters),
    )
