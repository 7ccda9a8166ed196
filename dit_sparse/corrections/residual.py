"""What sparse attention lacks, carried from an observed step as a few directions per head."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation, PlanContext, check_fraction
from dit_sparse.corrections.base import Correction, CorrectionInput
from dit_sparse.corrections.int8 import to_int8
from dit_sparse.corrections.pooled import PooledCompensation

KEY = "residual"
HEADS = 8
"""Heads taken at a time: bounds the float32 copies of the output."""
ROUNDS = 4
"""Of the subspace iteration: each separates directions by the fourth power of their sizes."""


@dataclass(frozen=True)
class LowRankResidual:
    """Add what the output lacked when dense attention was last observed, ``out = corrected + U V``.

    The lack ``dense - corrected`` of a query changes little from step to step, far less than the attention
    output itself (docs/findings.md). Re-ttention (arXiv 2505.22918) carries it whole, which has the size of
    the attention output in every layer and branch: 62 GB for Wan-14B at 720p.
    Over the queries of a head it lies in few directions, so ``rank`` of them are carried, the ones of most
    energy: ``V`` float32 ``[B, H, rank, D]`` and int8 ``U`` ``[B, N, H, rank]`` with a scale per direction,
    1.9 GB there at rank 8. Both guidance branches carry their own, also where they share a plan.

    Args:
        rank: directions per head, >= 1; the head size carries everything.
        base: what corrects before, and is part of what the lack is measured from; None for nothing.
        again: fraction of the steps after which the lack is taken once more, from a dense step, in [0, 1];
            None for never.
    """

    rank: int = 8
    base: Correction | None = field(default_factory=PooledCompensation)
    again: float | None = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank must be a whole number >= 1, got {self.rank!r}")
        check_fraction("again", self.again)

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step, and again."""
        learnt = context.state.values.get(_key(context))
        return context.due(None if learnt is None else learnt[0], context.relearning_step(self.again))

    def observe(self, seen: Observation) -> None:
        """Take the lack of this call."""
        given, context = seen.to_correct(), seen.context
        dense = seen.out if given.q_order is None else kernels.permute_rows(seen.out, given.q_order)
        levels, directions = self.lack(given, dense)
        if given.q_order is not None:  # in the model's order: the next plan may have another
            levels = kernels.restore_rows(levels, given.q_order)
        context.state.values[_key(context)] = (context.site.step, levels, directions)

    def lack(self, given: CorrectionInput, dense: Tensor) -> tuple[Tensor, Tensor]:
        """What the output of a call lacks, U and V.

        Args:
            given: the call.
            dense: ``[B, N, H, D]``, in the same order.

        Returns:
            int8 ``[B, N, H, rank]``, in this order, and float32 ``[B, H, rank, D]``.
        """
        parts = [
            _directions((x.float() - y.float()).transpose(1, 2), self.rank)
            for x, y in zip(dense.split(HEADS, dim=2), self._corrected(given).split(HEADS, dim=2))
        ]
        levels, directions = (torch.cat(found, dim=1) for found in zip(*parts))
        return levels.transpose(1, 2).contiguous(), directions

    def apply(self, given: CorrectionInput) -> Tensor:
        """The output with the carried lack added.

        Raises:
            ValueError: if nothing was observed yet.
        """
        _, levels, directions = given.context.learnt(_key(given.context))
        if given.q_order is not None:
            levels = kernels.permute_rows(levels, given.q_order)
        return self.add(given, levels, directions)

    def add(self, given: CorrectionInput, levels: Tensor, directions: Tensor) -> Tensor:
        """The output ``[B, N, H, D]`` with a lack as :meth:`lack` returns it, in the order of the call."""
        out = self._corrected(given)
        rows, directions = levels.to(out.dtype).transpose(1, 2), directions.to(out.dtype)
        for sample, u, v in zip(out.transpose(1, 2), rows, directions):
            sample.baddbmm_(u, v)
        return out

    def _corrected(self, given: CorrectionInput) -> Tensor:
        return given.out if self.base is None else self.base.apply(given)


def _key(context: PlanContext) -> str:
    return f"{KEY}.{context.site.branch}"


def _directions(lack: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """int8 ``[B, H, N, r]`` and float32 ``[B, H, r, D]`` whose product is the best approximation of ``lack``
    ``[B, H, N, D]`` by r = min(rank, D) directions, up to the rounding."""
    dim = lack.shape[-1]
    if rank >= dim:
        basis = torch.eye(dim, device=lack.device).expand(*lack.shape[:2], dim, dim)
    else:
        # Subspace iteration on the D x D Gram matrix: torch's eigensolvers would wait for the device.
        gram = lack.transpose(-1, -2) @ lack
        gram = gram / gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp(min=1e-30)
        start = torch.Generator().manual_seed(0)
        basis = torch.randn(dim, rank, generator=start).to(lack.device).expand(*lack.shape[:2], dim, rank)
        for _ in range(ROUNDS):
            basis = torch.linalg.qr(gram @ (gram @ basis)).Q
    levels, scale = to_int8(lack @ basis, dim=-2)
    return levels, (basis * scale).transpose(-1, -2)
