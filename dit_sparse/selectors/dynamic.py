"""Dynamic selectors: top-p and top-k over estimated block mass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.model_budget import ModelScope, check_model_scope, spend_at
from dit_sparse.selectors.scores import Score, estimate_mass


@dataclass(frozen=True)
class TopP:
    """Keep, per row, the heaviest blocks until their estimated mass exceeds p (SVG2, arXiv 2505.18875).

    With ``density`` instead of ``p`` the heaviest pairs of all heads of the layer (or of another ``scope``)
    are kept until the budget is spent, per sample: concentrated heads spend little and diffuse heads get the
    rest. A common p for all heads that meets the budget was measured too and loses (docs/findings.md): it
    spends most on the rows that gain least.

    Args:
        p: target mass in (0, 1]; ignored when ``density`` is given.
        density: fraction of pairs to keep in (0, 1], forced pairs included.
        min_ratio: every row keeps at least this fraction of its blocks, in [0, 1].
        score: see :func:`~dit_sparse.selectors.scores.estimate_mass`.
        scope: what shares a ``density``: "row", "head", "layer" or "model", see
            :func:`~dit_sparse.selectors.model_budget.spend_at`.
    """

    p: float = 0.9
    density: float | None = None
    min_ratio: float = 0.0
    score: Score = "pooled"
    scope: ModelScope = "layer"

    def __post_init__(self) -> None:
        check_density(self.density)
        if not 0.0 < self.p <= 1.0:
            raise ValueError(f"p must be in (0, 1], got {self.p}")
        if not 0.0 <= self.min_ratio <= 1.0:
            raise ValueError(f"min_ratio must be in [0, 1], got {self.min_ratio}")
        check_model_scope(self.scope)

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        mass = estimate_mass(given, self.score)
        if self.density == 1.0 or (self.p == 1.0 and self.density is None):
            return torch.ones_like(mass, dtype=torch.bool)
        # Forced pairs go first in every row: their mass counts towards p and they cannot be dropped.
        columns = (mass + given.forced.to(mass.dtype) * 2.0).argsort(dim=-1, descending=True)
        floor = max(1, round(self.min_ratio * mass.shape[-1]))
        if self.density is not None:  # a floor above the budget would defeat it
            floor = max(1, min(floor, int(self.density * mass.shape[-1])))
        first = (torch.arange(mass.shape[-1], device=mass.device) < floor).expand(mass.shape)
        if self.density is None:
            weight = mass.gather(-1, columns)
            first = first | (weight.cumsum(dim=-1) - weight < self.p)
        kept = torch.zeros_like(mass, dtype=torch.bool).scatter_(-1, columns, first)
        if self.density is None:
            return kept | given.forced
        return spend_at(given, (-mass).masked_fill(kept, -torch.inf), self.density, self.scope)


@dataclass(frozen=True)
class TopK:
    """Keep the heaviest blocks up to a fixed share, per row or over the whole map of a head.

    The whole-map choice is Draft-Attention's (arXiv 2505.14708); a row that would end up empty keeps its
    heaviest block.

    Args:
        density: fraction of pairs to keep in (0, 1], forced pairs included.
        scope: "row", "head", "layer" or "model", see :func:`~dit_sparse.selectors.model_budget.spend_at`.
        score: see :func:`~dit_sparse.selectors.scores.estimate_mass`.
    """

    density: float = 0.25
    scope: ModelScope = "head"
    score: Score = "pooled"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_model_scope(self.scope)

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        return spend_at(given, -estimate_mass(given, self.score), self.density, self.scope)
