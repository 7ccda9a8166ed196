"""What a profile says of one attention call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dit_sparse.layout import Site, TokenLayout
from dit_sparse.orderings import ALL, Heads
from dit_sparse.patterns import DENSE, OBSERVED, PatternTable, Profile, resample
from dit_sparse.patterns.checks import block_counts, layout_of
from dit_sparse.patterns.resample import scaled_groups

if TYPE_CHECKING:
    from dit_sparse.context import PlanContext


@dataclass(frozen=True)
class LayerRow:
    """What the heads of a layer do in one step group, on the grid of a call.

    Args:
        kind, axes: by head, see :class:`~dit_sparse.patterns.PatternTable`.
        density: by head, in (0, 1], for the number of tokens of the call.
        shape: by head, widths of a window as shares of the axes.
        masks: uint8 ``[heads of kind mask, nQ, ceil(nK / 8)]`` on the CPU, None if there is none.
        mask_columns: nK of the masks.
    """

    kind: tuple[int, ...]
    axes: tuple[int, ...]
    density: tuple[float, ...]
    shape: tuple[tuple[float, float, float], ...]
    masks: Tensor | None
    mask_columns: int

    def heads_of(self, kind: int) -> list[int]:
        """Indices of the heads of a kind, ascending."""
        return [head for head, own in enumerate(self.kind) if own == kind]


def indices(heads: list[int], count: int, device: torch.device) -> Heads:
    """Some heads out of ``count``; all of them in their order are a slice, which copies nothing."""
    return ALL if heads == list(range(count)) else torch.tensor(heads, device=device)


class HeadRows:
    """Finds what a profile says of a call. Shared by the parts of one method; nothing of a generation lies
    here, but the table for another grid than the profile's is kept until a further grid is asked for.

    Args:
        profile: the table and what it was made for.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        all_dense = (profile.table.kind == DENSE).all(dim=-1).tolist()
        self._dense = [
            [dense and precision == "native" for dense, precision in zip(*layers, strict=True)]
            for layers in zip(all_dense, profile.table.precisions, strict=True)
        ]
        self._observed = (profile.table.kind == OBSERVED).any(dim=-1).tolist()
        self._resampled: tuple[TokenLayout, Profile] | None = None

    @property
    def table(self) -> PatternTable:
        """The choices as they lie in the file."""
        return self.profile.table

    def first_step(self, num_steps: int | None) -> int:
        """Steps before it are dense, in a generation of as many steps; None stands for the profile's own."""
        return self._groups(num_steps)[1][0][0]

    def group(self, site: Site) -> int:
        """Row of the table for a step.

        Where the generation has another number of steps, the step groups keep their shares of it. Steps
        before the first group, which are dense unless somebody wishes otherwise, have the first group's row,
        steps behind the last one that one's.
        """
        return self.groups_until(site, None)[0]

    def groups_until(self, site: Site, end: int | None) -> list[int]:
        """Rows of the table for the steps from this one on, up to ``end`` if it lies ahead."""
        rows, edges = self._groups(site.num_steps)
        now = max(0, sum(site.step >= first for first, _ in edges) - 1)
        later = [
            row
            for row, (first, _) in list(zip(rows, edges))[now + 1 :]
            if end is None or end <= site.step or first < end
        ]
        return [rows[now], *later]

    def _groups(self, num_steps: int | None) -> tuple[list[int], tuple[tuple[int, int], ...]]:
        """Rows of the table that take part, and their [first, last)."""
        schedule = self.profile.header.schedule
        return scaled_groups(schedule.groups, schedule.num_steps, num_steps or schedule.num_steps)

    def is_dense(self, site: Site) -> bool:
        """Whether all heads of the layer are dense, and without loss of precision."""
        return self._dense[self.group(site)][site.layer]

    @property
    def observes(self) -> bool:
        """Whether some head learns in the run."""
        return any(any(layers) for layers in self._observed)

    def has_observed(self, group: int, layer: int) -> bool:
        """Whether some head of a layer learns in the run what it does in a step group."""
        return self._observed[group][layer]

    def row(self, context: PlanContext, group: int | None = None) -> LayerRow:
        """The choices for a layer; in the step's own group if none is given."""
        group = self.group(context.site) if group is None else group
        layer = context.site.layer
        profile = self._for_grid(context.layout)
        table, grid = profile.table, profile.header.grid
        stored = int(table.mask_group[group, layer])
        return LayerRow(
            tuple(table.kind[group, layer].tolist()),
            tuple(table.axes[group, layer].tolist()),
            tuple(table.density[group, layer].tolist()),
            tuple(tuple(widths) for widths in table.shape[group, layer].tolist()),
            table.masks[stored, layer] if stored >= 0 else None,
            block_counts(layout_of(grid), grid.block_size)[1],
        )

    def as_made(self, layout: TokenLayout) -> TokenLayout:
        """A layout with the text of the profile. Texts may be longer or shorter than that: their rows and
        columns are kept whatever the profile says."""
        grid = self.profile.header.grid
        return replace(layout, text_tokens=grid.text_tokens, text_position=grid.text_position)

    def _for_grid(self, layout: TokenLayout) -> Profile:
        """The profile, carried over to the grid of a call where that is another."""
        wanted = self.as_made(layout)
        if self._resampled is None or self._resampled[0] != wanted:
            block_size = self.profile.header.grid.block_size
            self._resampled = (wanted, resample(self.profile, wanted, block_size))
        return self._resampled[1]
