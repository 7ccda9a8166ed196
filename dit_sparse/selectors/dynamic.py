"""Dynamic selectors: top-p and top-k over estimated block mass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.selectors.base import SelectionInput, check_density, keep_smallest
from dit_sparse.selectors.scores import Score, estimate_mass
from dit_sparse.selectors.spend import Scope, check_scope, spend


@dataclass(frozen=True)
class TopP:
    """Keep, per row, the heaviest blocks until their estimated mass exceeds p (SVG2, arXiv 2505.18875).

    With ``density`` instead of ``p`` the heaviest pairs of all heads of the layer are kept until the budget
    is spent, per sample: concentrated heads spend little and diffuse heads get the rest. A common p for all
    heads that meets the budget was measured too and loses (docs/findings.md): it spends most on the rows that
    gain least.

    Args:
        p: target mass in (0, 1]; ignored when ``density`` is given.
        density: fraction of pairs to keep in (0, 1], forced pairs included.
        min_ratio: every row keeps at least this fraction of its blocks, in [0, 1].
        score: see :func:`~dit_sparse.selectors.scores.estimate_mass`.
    """

    p: float = 0.9
    density: float | None = None
    min_ratio: float = 0.0
    score: Score = "pooled"

    def __post_init__(self) -> None:
        check_density(self.density)
        if not 0.0 < self.p <= 1.0:
            raise ValueError(f"p must be in (0, 1], got {self.p}")
        if not 0.0 <= self.min_ratio <= 1.0:
            raise ValueError(f"min_ratio must be in [0, 1], got {self.min_ratio}")

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        mass = estimate_mass(given, self.score)
        if self.density == 1.0 or (self.p == 1.0 and self.density is None):
            return torch.ones_like(mass, dtype=torch.bool)
        # Forced pairs go first in every row: their mass counts towards p and they cannot be dropped.
        ranked, columns = (mass + given.forced.to(mass.dtype) * 2.0).sort(dim=-1, descending=True)
        floor = max(1, round(self.min_ratio * mass.shape[-1]))
        if self.density is not None:  # a floor above the budget would defeat it
            floor = max(1, min(floor, int(self.density * mass.shape[-1])))
        first = torch.arange(mass.shape[-1], device=mass.device) < floor
        if self.density is None:
            weight = mass.gather(-1, columns)
            kept = first | (weight.cumsum(dim=-1) - weight < self.p)
        else:
            kept = keep_smallest(
                (-ranked).masked_fill(first | (ranked >= 2.0), -torch.inf), self.density, dims=3
            )
        return torch.zeros_like(kept).scatter_(-1, columns, kept) | given.forced


@dataclass(frozen=True)
class TopK:
    """Keep the heaviest blocks up to a fixed share, per row or over the whole map of a head.

    The whole-map choice is Draft-Attention's (arXiv 2505.14708); a row that would end up empty keeps its
    heaviest block.

    Args:
        density: fraction of pairs to keep in (0, 1], forced pairs included.
        scope: "row", "head" or "layer", see :func:`~dit_sparse.selectors.spend.spend`.
        score: see :func:`~dit_sparse.selectors.scores.estimate_mass`.
    """

    density: float = 0.25
    scope: Scope = "head"
    score: Score = "pooled"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scope(self.scope)

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        return spend(-estimate_mass(given, self.score), given.forced, self.density, self.scope)
