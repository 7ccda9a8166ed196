"""Columns and diagonals of the block map that sampled rows attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.orderings.sampling import spread_tokens
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.spend import Scope, check_scope, spend

TIE = 1e-3
"""Weight of a pair's other line among the pairs of the marginal line."""


@dataclass(frozen=True)
class VerticalSlash:
    """Keep the heaviest columns (vertical) and diagonals (slash) of the block map (MInference, arXiv
    2407.02490).

    A few query rows spread over the grid attend to all keys. Every key block has the mean of its mass over
    those rows, every diagonal of blocks the mean over the rows that it crosses; both are mass per pair
    computed, so columns and diagonals compete for one budget, longest gain first. The marginal line is kept
    in part, where it crosses the heaviest of the others.

    Args:
        density: fraction of pairs to keep in (0, 1], forced pairs included.
        rows: query rows to sample, >= 1.
        scope: "head" (one budget per head) or "layer" (one over all heads).
    """

    density: float = 0.25
    rows: int = 64
    scope: Scope = "head"

    def __post_init__(self) -> None:
        check_density(self.density)
        check_scope(self.scope)
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``."""
        columns, diagonals = self.line_mass(given)
        n_q, n_k = given.forced.shape
        q_block, k_block = (torch.arange(n, device=given.q.device) for n in (n_q, n_k))
        on_diagonal = diagonals[..., k_block - q_block[:, None] + n_q - 1]
        on_column = columns[..., None, :]
        heavier, lighter = torch.maximum(on_column, on_diagonal), torch.minimum(on_column, on_diagonal)
        return spend(-(heavier + TIE * lighter), given.forced, self.density, self.scope)

    def line_mass(self, given: SelectionInput) -> tuple[Tensor, Tensor]:
        """Mean mass per pair of every column ``[B, H, nK]`` and diagonal ``[B, H, nQ + nK - 1]``; entry d of
        the latter holds the pairs with key block - query block = d - (nQ - 1)."""
        context = given.context
        n_q, n_k = given.forced.shape
        row = given.video_start + spread_tokens(context.layout.grid, self.rows, given.q.device)
        sampled = given.q.index_select(1, row)
        mass = kernels.sampled_block_mass(sampled, given.k, context.block_size[1], context.scale)
        # Every row laid along the diagonals, gathered, because adding into them would not be deterministic.
        offset = torch.arange(n_q + n_k - 1, device=row.device) - (n_q - 1)
        column = row[:, None] // context.block_size[0] + offset
        crossed = (column >= 0) & (column < n_k)
        index = column.clamp(0, n_k - 1).expand(*mass.shape[:2], -1, -1)
        diagonals = (mass.gather(-1, index) * crossed).sum(dim=2) / crossed.sum(dim=0).clamp(min=1)
        return mass.mean(dim=2), diagonals
