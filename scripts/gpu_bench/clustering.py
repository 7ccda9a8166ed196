"""k-means of the semantic ordering: flash-kmeans beside plain torch."""

from __future__ import annotations

from functools import partial

from dit_sparse.kernels import kmeans
from dit_sparse.kernels.dispatch import installed
from gpu_bench.harness import Row, Settings, benchmark, random_qkv

CLUSTERS = (100, 300, 1000)


@benchmark("kmeans")
def bench_kmeans(settings: Settings) -> list[Row]:
    """Two Lloyd rounds from a warm start (so three assignments)."""
    rows: list[Row] = []
    for name, shape in settings.shapes.items():
        rows += kmeans_rows(name, shape, CLUSTERS, settings)
    return rows


def kmeans_rows(
    name: str, shape: tuple[int, int, int], cluster_counts: tuple[int, ...], settings: Settings
) -> list[Row]:
    """Every implementation at one shape (tokens, heads, head size)."""
    tokens, heads, dim = shape
    rows: list[Row] = []
    x = random_qkv(tokens, heads, dim, settings.device)[0]
    for clusters in cluster_counts:
        warm = kmeans(x, clusters, iterations=1).centroids
        for impl in ("flash_kmeans", "reference"):
            if impl == "flash_kmeans" and not (x.is_cuda and installed("flash_kmeans")):
                continue
            run = partial(kmeans, x, clusters, centroids=warm, iterations=2, impl=impl)
            row: Row = {"shape": name, "H": heads, "clusters": clusters, "kernel": impl}
            rows.append(row | {"ms": round(settings.time(run), 3)})
    return rows
