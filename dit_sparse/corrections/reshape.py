"""Statistical reshape: the share of the softmax that the kept keys had when it was last known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation, PlanContext
from dit_sparse.corrections.base import CorrectionInput
from dit_sparse.corrections.int8 import to_int8

RHO, RESIDUAL, STEP = "reshape.rho", "reshape.residual", "reshape.step"


@dataclass(frozen=True)
class StatisticalReshape:
    """Scale every row by the ratio of its sparse to its dense softmax denominator, and add what was missing
    (Re-ttention, arXiv 2505.22918): ``out = rho * sparse + R``.

    At refresh steps, which run dense, ``rho = exp(lse_sparse - lse_dense)`` and ``R = dense - rho * sparse``
    are taken per row and carried in the model's token order, so that the selector and the ordering may change
    from step to step. In between rho grows and R stays. Unlike the paper's, rho is clamped at 1, and comes
    from the kernels' log-sum-exp: no logits are stored.

    Without R the skipped keys count as zero values: rows shrink towards zero by what was skipped. R has the
    size of the attention output, per layer and guidance branch; it is carried in the most precise of the
    model's dtype, bfloat16, and int8 with a scale per row, that fits its budget.

    Args:
        refresh_steps: a dense step every so many steps, >= 1.
        growth: what rho gains per step since the last refresh, the paper's lambda, in [0, 1].
        residual_bytes: budget of R per layer and branch in bytes, >= 0; 0 carries no R.
    """

    refresh_steps: int = 5
    growth: float = 0.04
    residual_bytes: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.refresh_steps, int) or self.refresh_steps < 1:
            raise ValueError(f"refresh_steps must be a whole number >= 1, got {self.refresh_steps!r}")
        if not 0.0 <= self.growth <= 1.0:
            raise ValueError(f"growth must be in [0, 1], got {self.growth}")
        if not isinstance(self.residual_bytes, int) or self.residual_bytes < 0:
            raise ValueError(f"residual_bytes must be a whole number >= 0, got {self.residual_bytes!r}")

    def wants(self, context: PlanContext) -> bool:
        """At the last dense step and every ``refresh_steps`` after it."""
        learnt = context.state.values.get(_key(STEP, context))
        return context.due(learnt, None if learnt is None else learnt + self.refresh_steps)

    def observe(self, seen: Observation) -> None:
        """Compare the method's own sparse attention of this call with the dense one.

        Raises:
            ValueError: if R does not fit its budget even as int8.
        """
        values, context = seen.context.state.values, seen.context
        sparse, lse = seen.sparse()
        # float16 keeps 11 bits of a number in [0, 1] at 2 bytes per row and head.
        rho = (lse - seen.lse).exp().clamp(max=1.0).half()
        values[_key(RHO, context)], values[_key(STEP, context)] = rho, context.site.step
        if self.residual_bytes:
            residual = seen.out.float() - _per_row(rho.float()) * sparse.float()
            values[_key(RESIDUAL, context)] = _stored(residual, seen.out.dtype, self.residual_bytes)

    def apply(self, given: CorrectionInput) -> Tensor:
        """The reshaped output ``[B, N, H, D]``.

        Raises:
            ValueError: if nothing was observed yet.
        """
        context = given.context
        age = context.site.step - context.learnt(_key(STEP, context))
        rho = (given.rows(context.learnt(_key(RHO, context))).float() + self.growth * age).clamp(max=1.0)
        out = given.out * _per_row(rho)
        if self.residual_bytes:
            residual = _restored(context.learnt(_key(RESIDUAL, context)), given.out.dtype)
            if given.q_order is not None:
                residual = kernels.permute_rows(residual, given.q_order)
            out = out + residual
        return out.to(given.out.dtype)


def _key(name: str, context: PlanContext) -> str:
    """Branches may share their blocks, and with them this state: the ratio and R are each one's own."""
    return f"{name}.{context.site.branch}"


def _per_row(rows: Tensor) -> Tensor:
    """``[B, H, N]`` to ``[B, N, H, 1]``."""
    return rows.transpose(1, 2)[..., None]


def _stored(residual: Tensor, dtype: torch.dtype, budget: int) -> tuple[Tensor, ...]:
    """The residual in the most precise form that fits: one tensor, or int8 with its scales."""
    for kind in (dtype, torch.bfloat16):
        if residual.numel() * kind.itemsize <= budget:
            return (residual.to(kind),)
    levels, scales = to_int8(residual, dim=-1)
    needed = levels.numel() + scales.numel() * scales.element_size()
    if needed > budget:
        raise ValueError(
            f"residual_bytes={budget} cannot hold the residual of {tuple(residual.shape)} [B, N, H, D]: it "
            f"needs {needed} bytes per layer and branch as int8, {residual.numel() * 2} as bfloat16; "
            "residual_bytes=0 goes without it"
        )
    return levels, scales


def _restored(stored: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    values, *scales = stored
    return (values.float() * scales[0]).to(dtype) if scales else values.to(dtype)
