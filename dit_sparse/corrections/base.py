"""Correction axis: how what was skipped is made good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dit_sparse.context import PlanContext
from dit_sparse.kernels import VariableBlocks
from dit_sparse.layout import BlockMap


@dataclass(frozen=True)
class CorrectionInput:
    """All a correction may look at, in the reordered sequence.

    Args:
        q, k, v: ``[B, N, H, D]``.
        out: sparse output ``[B, N, H, D]``.
        lse: float32 ``[B, H, N]`` over the kept keys.
        block_map: kept pairs.
        scale: factor on the logits.
        q_order: query order of the plan, int64 ``[N]``, ``[H, N]`` or ``[B, H, N]``; None in model order.
        context: where the call is, and its state.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor
    block_map: BlockMap | VariableBlocks
    scale: float
    q_order: Tensor | None
    context: PlanContext

    def rows(self, values: Tensor) -> Tensor:
        """Values per query in the model's token order, ``[B, H, N]``, brought to the order of ``out``."""
        if self.q_order is None:
            return values
        return values.gather(-1, self.q_order.expand(values.shape))


class Correction(Protocol):
    """Improves the output of sparse attention."""

    def apply(self, given: CorrectionInput) -> Tensor:
        """The corrected output ``[B, N, H, D]`` in the dtype of ``given.out``."""
        ...
