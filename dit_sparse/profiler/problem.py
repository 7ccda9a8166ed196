"""A recording with all that follows from it: blocks, forced pairs, weights of steps and layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dit_sparse.context import relearning_step
from dit_sparse.layout import TokenLayout, ceil_div
from dit_sparse.methods.mosaic import RELEARN
from dit_sparse.patterns import DENSE, KINDS, OBSERVED
from dit_sparse.profiler.budget import Budget
from dit_sparse.profiler.cost import Cost, density_cost, time_cost
from dit_sparse.profiler.cost_table import CostTable
from dit_sparse.profiler.recording import Recording
from dit_sparse.selectors.base import forced_pairs

Floats = NDArray[np.float64]
LEAST_SENSITIVITY = 1e-6
"""Of the mean: a layer that seems not to matter still takes the better of two choices of equal cost."""


@dataclass(frozen=True)
class Problem:
    """What there is to choose for.

    Args:
        recording: see :class:`~dit_sparse.profiler.recording.Recording`.
        table: measured times, or None: then the density is the cost.

    Raises:
        ValueError: for a recording whose tensors do not fit one another, or hold no numbers.
    """

    recording: Recording
    table: CostTable | None = None

    def __post_init__(self) -> None:
        r = self.recording
        groups, layers, _ = self.sizes
        if (len(r.schedule.groups), r.model.layers, r.model.heads) != self.sizes:
            raise ValueError(
                f"the recording holds {self.sizes} (step groups, layers, heads), its header says "
                f"{(len(r.schedule.groups), r.model.layers, r.model.heads)}"
            )
        curves = (*self.sizes, len(r.templates))
        shapes = {"error": curves, "density": curves, "recall": curves, "sensitivity": (groups, layers)}
        for name, shape in shapes.items():
            found: Tensor = getattr(r, name)
            if tuple(found.shape) != shape:
                raise ValueError(f"{name} must be {shape}, got {tuple(found.shape)}")
            if not torch.isfinite(found).all() or (found < 0).any():
                raise ValueError(f"{name} of the recording holds negative numbers, infinities or NaN")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(G, L, H)."""
        groups, layers, heads = self.recording.axes.shape
        return groups, layers, heads

    @cached_property
    def layout(self) -> TokenLayout:
        """Token grid and text."""
        grid = self.recording.grid
        return TokenLayout(grid.frames, grid.height, grid.width, grid.text_tokens, grid.text_position)

    @cached_property
    def blocks(self) -> tuple[int, int]:
        """(nQ, nK)."""
        q_size, k_size = self.recording.grid.block_size
        return ceil_div(self.layout.num_tokens, q_size), ceil_div(self.layout.num_tokens, k_size)

    @property
    def total(self) -> int:
        """Pairs of a head."""
        return self.blocks[0] * self.blocks[1]

    @cached_property
    def forced(self) -> Tensor:
        """Bool ``[nQ, nK]`` in a head's order, text last: rows and columns of text, the diagonal."""
        return self._forced(diagonal=True)

    @cached_property
    def text_rows(self) -> Tensor:
        """Bool ``[nQ]``."""
        return self._forced(diagonal=False).all(dim=-1)

    def _forced(self, diagonal: bool) -> Tensor:
        layout, cpu = self.layout, torch.device("cpu")
        return forced_pairs(
            layout.num_tokens,
            layout.video_tokens,
            layout.text_tokens,
            self.recording.grid.block_size,
            cpu,
            diagonal=diagonal,
        )

    def masked_pairs(self, density: float) -> int:
        """Pairs of a head at a density, rounded down.

        Raises:
            ValueError: where those that are always kept are more.
        """
        pairs, least = int(density * self.total + 1e-6), int(self.forced.sum())
        if pairs < least:
            raise ValueError(
                f"a density of {density} cannot be met: masks always keep the diagonal and what touches "
                f"text, which is {least / self.total:.4g} here"
            )
        return pairs

    @cached_property
    def share(self) -> Floats:
        """``[G]``: part of the sparse steps that a group is; sums to one."""
        lengths = np.array([last - first for first, last in self.recording.schedule.groups], dtype=np.float64)
        return lengths / lengths.sum()

    @cached_property
    def relearning(self) -> float:
        """Part of the sparse steps that is dense where heads are observed, which learn again halfway, and at
        the first step where there is no guard."""
        schedule = self.recording.schedule
        first = schedule.groups[0][0]
        again = relearning_step(RELEARN, schedule.num_steps, first)
        steps = {step for step in (0, again) if step is not None and step >= first}
        return len(steps) / (schedule.num_steps - first)

    @cached_property
    def sensitivity(self) -> Floats:
        """``[G, L]``, greater than zero."""
        found = self.recording.sensitivity.double().numpy()
        mean = found.mean()
        return np.maximum(found, LEAST_SENSITIVITY * mean) if mean > 0 else np.ones_like(found)

    @cached_property
    def error(self) -> Floats:
        """``[G, L, H, C]``."""
        return self.recording.error.double().numpy()

    @cached_property
    def pairs(self) -> NDArray[np.int64]:
        """int64 ``[G, L, H, C]``: pairs that every template computed, to the nearest whole one."""
        pairs = np.rint(self.recording.density.double().numpy() * self.total).astype(np.int64)
        return np.clip(pairs, 0, self.total)

    @cached_property
    def time(self) -> Cost | None:
        """By the table, or None."""
        if self.table is None:
            return None
        return time_cost(self.table, self.recording.model, self.recording.grid)

    def cost(self, budget: Budget) -> Cost:
        """What is counted against a budget, or kept small within an error.

        Raises:
            ValueError: where the budget is a time and there is no table.
        """
        if budget.name == "density":
            return density_cost(self.recording.model)
        if self.time is not None:
            return self.time
        if budget.timed:
            raise ValueError(
                f"a budget of {budget.name}={budget.value} needs measured times: give cost=, a CostTable "
                "from measure_cost, or a budget of density"
            )
        return density_cost(self.recording.model)

    def limit(self, budget: Budget) -> float:
        """The budget in units of its cost, or of the squared output error."""
        if budget.name == "speedup":
            return self.cost(budget).dense() / budget.value
        return budget.value**2 if budget.name == "output_error" else budget.value

    def reordered(self, kind: NDArray, axes: NDArray) -> NDArray[np.bool_]:
        """``[G, L]``: whether some head of a layer runs in another order than the model's.

        Args:
            kind, axes: ``[G, L, H]``.
        """
        moved = (axes != 0) | (kind == OBSERVED) | (self.layout.text_position == "first")
        return moved.any(axis=-1) & (kind != DENSE).any(axis=-1)

    def mean_mass(self, layer: int, groups: list[int], axes: NDArray) -> Tensor:
        """Block mass of the heads of a layer, float32 ``[H, nQ, nK]``: mean over step groups by length, of
        those that recorded a head in this order.

        Args:
            layer: index.
            groups: step groups.
            axes: ``[H]``, the order of every head; at least one of the groups has it.
        """
        mass: Mapping = self.recording.mass
        if len(groups) == 1:
            return mass[groups[0], layer].float()
        summed, weight = torch.zeros(self.sizes[2], *self.blocks), torch.zeros(self.sizes[2], 1, 1)
        for g in groups:
            same = torch.as_tensor(self.recording.axes[g, layer].numpy() == axes)[:, None, None]
            summed += self.share[g] * same * mass[g, layer].float()
            weight += self.share[g] * same
        return summed / weight

    def templates(self, kind: str) -> list[int]:
        """Indices of the templates of a kind, by density."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}: use one of {', '.join(KINDS)}")
        found = [i for i, template in enumerate(self.recording.templates) if template.kind == kind]
        return sorted(found, key=lambda i: self.recording.templates[i].density)
