"""Tensors in, tensors out: block-sparse attention, pooling, reordering and clustering, each with a CPU
definition.

Importing this package loads torch and nothing else. Triton, flash-attn-4 and flash-kmeans are imported by the
backend that needs them when it first runs, and the package works without any of them.
"""

from dit_sparse.kernels.clustering import KMeansResult, kmeans, sort_by_label
from dit_sparse.kernels.compensation import merge_attention, pooled_attention
from dit_sparse.kernels.dense import dense_attention
from dit_sparse.kernels.dispatch import available_backends, block_sparse_attention, explain_backend
from dit_sparse.kernels.pooling import block_mass, mean_key_mass, pool_blocks, pooled_scores
from dit_sparse.kernels.rows import permute_rows, restore_rows

__all__ = [
    "KMeansResult",
    "available_backends",
    "block_mass",
    "block_sparse_attention",
    "dense_attention",
    "explain_backend",
    "kmeans",
    "mean_key_mass",
    "merge_attention",
    "permute_rows",
    "pool_blocks",
    "pooled_attention",
    "pooled_scores",
    "restore_rows",
    "sort_by_label",
]
