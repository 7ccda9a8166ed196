"""Corrections: one small file per idea; see :mod:`dit_sparse.corrections.base` for the contract."""

from __future__ import annotations

from dit_sparse.corrections.base import Correction, CorrectionInput
from dit_sparse.corrections.pooled import PooledCompensation
from dit_sparse.corrections.reshape import StatisticalReshape
from dit_sparse.corrections.residual import LowRankResidual

CORRECTIONS: dict[str, Correction | None] = {
    "none": None,
    "pooled": PooledCompensation(),
    "residual": LowRankResidual(),
    "reshape": StatisticalReshape(),
    "reshape_residual": StatisticalReshape(residual_bytes=2**29),
}
"""By the name that methods take in their ``correction`` field."""


def correction_named(name: str) -> Correction | None:
    """The correction of this name; None for "none".

    Raises:
        ValueError: for an unknown name.
    """
    if name not in CORRECTIONS:
        raise ValueError(f"unknown correction {name!r}: use one of {', '.join(CORRECTIONS)}")
    return CORRECTIONS[name]


__all__ = [
    "CORRECTIONS",
    "Correction",
    "CorrectionInput",
    "LowRankResidual",
    "PooledCompensation",
    "StatisticalReshape",
    "correction_named",
]
