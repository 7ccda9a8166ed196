"""Whole cells of a partition, chosen by their mean key."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.layout import ceil_div
from dit_sparse.orderings.partition import run_means
from dit_sparse.selectors.base import SelectionInput, check_density
from dit_sparse.selectors.scores import estimate_mass
from dit_sparse.selectors.spend import spend

Selection = Literal["local_topk", "global_threshold"]
TIE = 0.5
"""Weight of the estimated mass (at most 1) among the blocks of one cell; cells are apart by 1 rank."""


@dataclass(frozen=True)
class CellGate:
    """Compute attention to the cells whose mean key agrees most with the queries (VMoBA, arXiv 2506.23858).

    The gate of a query block and a cell is the product of their means. A query block always keeps the cells
    it lies in (local). "local_topk" adds the cells of largest gate until a row has its number of cells;
    "global_threshold" scales the gates of a head to [0, 1] and keeps its largest, wherever they are, until
    they and the local ones make up a share of all. Blocks that reach into a kept cell are computed.

    Needs an ordering with cells, such as :class:`~dit_sparse.orderings.CyclingPartition`.

    Args:
        selection: "local_topk" or "global_threshold".
        top_k: cells per row, local ones included, as a share of the cells in (0, 1].
        threshold: share of the sum of the scaled gates in (0, 1].
        density: instead of ``top_k`` or ``threshold``, fill this fraction of the pairs in the order of
            selection; of the last cell its blocks of largest pooled score.
    """

    selection: Selection = "local_topk"
    top_k: float = 0.25
    threshold: float = 0.25
    density: float | None = None

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.selection not in ("local_topk", "global_threshold"):
            raise ValueError(f"selection must be 'local_topk' or 'global_threshold', got {self.selection!r}")
        for name in ("top_k", "threshold"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")

    def select(self, given: SelectionInput) -> Tensor:
        """Bool ``[B, H, nQ, nK]``.

        Raises:
            ValueError: with an ordering that has no cells.
        """
        runs, forced = given.order.runs, given.forced
        if runs is None:
            raise ValueError("CellGate needs an ordering with cells: use CyclingPartition()")
        block, device = given.context.block_size, given.q.device
        queries = kernels.pool_blocks(given.q, block[0])
        gate = queries @ run_means(given.k, runs).transpose(-1, -2)
        q_first, q_last = _cells_of_blocks(runs, block[0], forced.shape[0], device)
        cell = torch.arange(len(runs), device=device)
        local = (q_first[:, None] <= cell) & (cell <= q_last[:, None])
        # Places in the order of selection, the local cells first: [B, H, nQ, C].
        dims = 1 if self.selection == "local_topk" else 2
        best_first = (
            gate.masked_fill(local, torch.inf).flatten(-dims).argsort(dim=-1, descending=True, stable=True)
        )
        places = torch.arange(best_first.shape[-1], device=device).expand(best_first.shape)
        rank = torch.empty_like(best_first).scatter_(-1, best_first, places).view(gate.shape)
        columns = _cells_of_blocks(runs, block[1], forced.shape[1], device)
        if self.density is None:
            kept_cells = self._kept(gate, local, rank)
            kept = kept_cells[..., columns[0]] | kept_cells[..., columns[1]]
            return kept | forced
        first = torch.minimum(rank[..., columns[0]], rank[..., columns[1]])
        cost = first - TIE * estimate_mass(given, "pooled")
        return spend(cost, forced, self.density, "row" if dims == 1 else "head")

    def _kept(self, gate: Tensor, local: Tensor, rank: Tensor) -> Tensor:
        """Kept cells, bool ``[B, H, nQ, C]``, by the paper's rule."""
        if self.selection == "local_topk":
            return (rank < max(1, round(self.top_k * gate.shape[-1]))) | local
        low, high = gate.amin(dim=(-1, -2), keepdim=True), gate.amax(dim=(-1, -2), keepdim=True)
        scaled = (gate - low) / (high - low).clamp(min=1e-6)
        # Local cells rank first, so what precedes a pair is the local ones and the larger gates.
        order = rank.flatten(-2).argsort(dim=-1)
        ranked = scaled.flatten(-2).gather(-1, order)
        before = ranked.cumsum(dim=-1) - ranked
        needed = self.threshold * ranked.sum(dim=-1, keepdim=True)
        return (before < needed).gather(-1, rank.flatten(-2)).view(gate.shape) | local


@lru_cache(maxsize=64)
def _cells_of_blocks(
    runs: tuple[int, ...], size: int, blocks: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """First and last cell that every block reaches into, int64 ``[blocks]`` each; blocks of text alone get
    the last cell. A block over three cells or more counts for its first and its last."""
    cell = torch.arange(len(runs)).repeat_interleave(torch.tensor(runs))
    start = torch.arange(blocks) * size
    last = len(cell) - 1
    assert blocks >= ceil_div(len(cell), size)
    first, end = cell[start.clamp(max=last)], cell[(start + size - 1).clamp(max=last)]
    return first.to(device), end.to(device)
