"""Tensors in, tensors out: block-sparse attention, pooling, reordering and clustering, each with a CPU
definition.

Importing this package loads torch and nothing else. Triton, flash-attn-4 and flash-kmeans are imported by the
backend that needs them when it first runs, and the package works without any of them.
"""

from dit_sparse.kernels.block_error import centroid_error, cluster_error, moment_error, skip_error
from dit_sparse.kernels.clustering import KMeansResult, kmeans, sort_by_label
from dit_sparse.kernels.compensation import compensate, merge_attention, pooled_attention
from dit_sparse.kernels.dense import dense_attention
from dit_sparse.kernels.dispatch import available_backends, block_sparse_attention, explain_backend
from dit_sparse.kernels.low_bit import low_bit_margin
from dit_sparse.kernels.mask_error import mask_error
from dit_sparse.kernels.norm_rope import inverse_order, norm_rope, rotary_table
from dit_sparse.kernels.pooling import block_mass, mean_key_mass, pool_blocks, pooled_scores
from dit_sparse.kernels.quantize import PRECISIONS
from dit_sparse.kernels.rows import permute_rows, permute_together, restore_rows
from dit_sparse.kernels.sampling import representative_rows, sampled_block_mass, sampled_recall
from dit_sparse.kernels.similarity import block_similarity
from dit_sparse.kernels.variable_blocks import VariableBlocks

__all__ = [
    "KMeansResult",
    "PRECISIONS",
    "VariableBlocks",
    "available_backends",
    "block_mass",
    "block_similarity",
    "block_sparse_attention",
    "centroid_error",
    "cluster_error",
    "compensate",
    "dense_attention",
    "explain_backend",
    "inverse_order",
    "kmeans",
    "low_bit_margin",
    "mask_error",
    "mean_key_mass",
    "merge_attention",
    "moment_error",
    "norm_rope",
    "permute_rows",
    "permute_together",
    "pool_blocks",
    "pooled_attention",
    "pooled_scores",
    "representative_rows",
    "restore_rows",
    "rotary_table",
    "sampled_block_mass",
    "sampled_recall",
    "skip_error",
    "sort_by_label",
]
