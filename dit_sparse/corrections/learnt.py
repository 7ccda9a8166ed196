"""Pooled compensation where it helps, and the offset that is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dit_sparse import kernels
from dit_sparse.context import Observation, PlanContext
from dit_sparse.corrections.base import CorrectionInput
from dit_sparse.corrections.pooled import PooledCompensation

USE, OFFSET, STEP = "compensation.use", "compensation.offset", "compensation.step"


@dataclass(frozen=True)
class LearntCompensation:
    """Compensate the heads that gain by it, and add to every head what all its queries lacked when dense
    attention was last observed.

    Heads of sharp attention lose by pooled compensation: the means of a block stand for its strongest key,
    which every query then gets the same wrong share of. What is worse, the error no longer differs from query
    to query: in the first layer of the embedded model two thirds of it are one vector for all tokens, which
    the network hands on as an offset of the whole video (docs/findings.md). So a head is compensated only
    where that lowers its error to ``margin``. With ``offset`` the mean error over the queries, D numbers per
    head, is carried and added: Re-ttention's residual (arXiv 2505.22918) without its size.

    Args:
        margin: a head is compensated where its squared error falls below this share of the uncompensated one,
            each without its mean over the queries, in (0, 1].
        offset: carry and add the mean error.
        again: fraction of the steps after which both are learnt once more, from a dense step; None for never.
    """

    margin: float = 0.5
    offset: bool = True
    again: float | None = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.margin <= 1.0:
            raise ValueError(f"margin must be in (0, 1], got {self.margin}")
        if self.again is not None and not 0.0 <= self.again <= 1.0:
            raise ValueError(f"again must be in [0, 1] or None, got {self.again}")

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step, and again."""
        return context.due(context.state.values.get(STEP), context.step_at(self.again))

    def observe(self, seen: Observation) -> None:
        """Compare both outputs with the dense one; carry bool ``[B, H]`` and float32 ``[B, 1, H, D]``."""
        given = seen.to_correct()
        dense = seen.out if given.q_order is None else kernels.permute_rows(seen.out, given.q_order)
        dense = dense.float()
        lacks = [dense - given.out.float(), dense - PooledCompensation().apply(given).float()]
        lacks = [lack[:, _video(given)] for lack in lacks]
        offsets = [lack.mean(dim=1, keepdim=True) for lack in lacks]
        plain, pooled = (
            (lack - offset if self.offset else lack).square().sum(dim=(1, 3))
            for lack, offset in zip(lacks, offsets)
        )
        values = seen.context.state.values
        values[USE] = pooled < self.margin * plain
        if self.offset:
            values[OFFSET] = torch.where(values[USE][:, None, :, None], offsets[1], offsets[0])
        values[STEP] = seen.context.site.step

    def apply(self, given: CorrectionInput) -> torch.Tensor:
        """The output, corrected head by head.

        Raises:
            ValueError: if nothing was observed yet.
        """
        use = given.context.learnt(USE)[:, None, :, None]
        out = torch.where(use, PooledCompensation().apply(given), given.out)
        if self.offset:
            video = _video(given)
            out[:, video] = (out[:, video].float() + given.context.learnt(OFFSET)).to(out.dtype)
        return out


def _video(given: CorrectionInput) -> slice:
    """The rows of the video: those of text are exact, because all their pairs are kept."""
    layout = given.context.layout
    start = layout.video_start if given.q_order is None else 0
    return slice(start, start + layout.video_tokens)
