"""Pooled compensation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dit_sparse import kernels
from dit_sparse.corrections.base import CorrectionInput


@dataclass(frozen=True)
class PooledCompensation:
    """Skipped blocks take part through their mean key and mean value, merged by log-sum-exp (arXiv
    2603.08982).

    Nothing is lost from the softmax's denominator any more, and heads with almost uniform attention, which no
    block map can serve cheaply, come out nearly exact.
    """

    def apply(self, given: CorrectionInput) -> Tensor:
        """The sparse output merged with the attention to the means of the skipped blocks."""
        return kernels.compensate(
            given.q, given.k, given.v, given.out, given.lse, given.block_map, scale=given.scale
        )
