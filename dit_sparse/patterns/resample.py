"""Carry a profile over to another grid, block size or number of steps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dit_sparse.layout import TokenLayout
from dit_sparse.patterns.checks import check_header, check_table, layout_of
from dit_sparse.patterns.errors import ProfileError
from dit_sparse.patterns.header import Figures, GridFacts, ScheduleFacts
from dit_sparse.patterns.profile import Profile
from dit_sparse.patterns.resample_masks import carry_masks
from dit_sparse.patterns.resample_scores import Blocks, GridChange
from dit_sparse.patterns.seal import validated
from dit_sparse.patterns.table import DENSE, MASK, SKIP, PatternTable

Groups = tuple[tuple[int, int], ...]


def resample(
    profile: Profile, layout: TokenLayout, block_size: tuple[int, int], num_steps: int | None = None
) -> Profile:
    """The profile for another run; itself where nothing differs.

    Rules (windows, radial, dynamic) keep their proportions. The density d of a head on N tokens becomes
    ``d - constant / N + constant / M`` on M (MoA, arXiv 2406.14909), at least one block a row and at most 1;
    dense and skipped heads stay what they are. Masks: see :mod:`~dit_sparse.patterns.resample_masks`; the
    density of their heads becomes what their masks hold. Step groups keep their shares of the generation, to
    whole steps; groups left without a step are dropped, and one step at least is not dense.

    The predicted error and speed-up do not hold any more: the new header has None for them. Masks take about
    30 ms per head of 600 x 600 blocks on one core, once.

    Args:
        profile: as loaded.
        layout: token grid and text of the new run.
        block_size: (query block, key block) in tokens.
        num_steps: denoising steps; None where the loop does not tell, the step groups stay then.

    Raises:
        ProfileError: where the new run is out of what a profile can hold.
    """
    header = profile.header
    steps = header.schedule.num_steps if num_steps is None else num_steps
    old = Blocks(layout_of(header.grid), header.grid.block_size)
    new = Blocks(layout, (block_size[0], block_size[1]))
    if old == new and steps == header.schedule.num_steps:
        return profile
    rows, groups = scaled_groups(header.schedule.groups, header.schedule.num_steps, steps)
    grid, schedule = _facts(new, header.schedule.scheduler, steps, groups)
    unpriced = Figures(density=header.figures.density)
    made = header.model_copy(update={"grid": grid, "schedule": schedule, "figures": unpriced})
    check_header(made)
    table = profile.table if len(rows) == len(header.schedule.groups) else _rows_of(profile.table, rows)
    if old != new:
        table = _on_grid(table, old, new)
    made = made.model_copy(update={"figures": Figures(density=_mean_density(table, groups))})
    check_table(table, made)
    return Profile(made, table, profile.path)


def scaled_groups(groups: Groups, num_steps: int, other: int) -> tuple[list[int], Groups]:
    """Step groups for another number of steps, in proportion.

    Args:
        groups: [first, last) of every group out of ``num_steps``.
        num_steps, other: steps of the profile and of the run, each >= 1.

    Returns:
        Indices of the groups that keep at least one step, and their new [first, last).
    """
    if other < 1:
        raise ProfileError(f"num_steps is {other}, must be at least 1")

    def scaled(step: int) -> int:
        return (2 * step * other + num_steps) // (2 * num_steps)  # to the nearest, halves up

    starts = [min(scaled(first), other - 1) for first, _ in groups]
    edges = list(zip(starts, [*starts[1:], other], strict=True))
    rows = [row for row, (first, last) in enumerate(edges) if first < last]
    return rows, tuple(edges[row] for row in rows)


def _facts(new: Blocks, scheduler: str, steps: int, groups: Groups) -> tuple[GridFacts, ScheduleFacts]:
    layout = new.layout
    grid = {
        "frames": layout.frames,
        "height": layout.height,
        "width": layout.width,
        "text_tokens": layout.text_tokens,
        "text_position": layout.text_position,
        "block_size": new.size,
    }
    schedule = {"scheduler": scheduler, "num_steps": steps, "groups": groups}
    return (
        validated(GridFacts, grid, "the grid to resample to"),
        validated(ScheduleFacts, schedule, "the schedule to resample to"),
    )


def _rows_of(table: PatternTable, rows: list[int]) -> PatternTable:
    """The table of some of the step groups. Masks of a dropped group go to the first that shares them."""
    kept = table.mask_group[rows].long()
    renamed, masks = torch.full_like(kept, -1), {}
    for layer, column in enumerate(kept.T.tolist()):
        owners: dict[int, int] = {}
        for row, group in enumerate(column):
            if group >= 0:
                renamed[row, layer] = owners.setdefault(group, row)
        masks.update({(row, layer): table.masks[group, layer] for group, row in owners.items()})
    fields = ("kind", "axes", "density", "constant", "shape", "precision")
    return replace(
        table,
        **{name: getattr(table, name)[rows] for name in fields},
        mask_group=renamed.to(table.mask_group.dtype),
        masks=masks,
    )


def _on_grid(table: PatternTable, old: Blocks, new: Blocks) -> PatternTable:
    density = _extrapolated(table, old.layout.num_tokens, new)
    masks, change = {}, GridChange(old, new)
    for (group, layer), bits in table.masks.items():
        heads = (table.kind[group, layer] == MASK).nonzero().flatten()
        axes = table.axes[group, layer, heads].tolist()
        masks[group, layer], kept = carry_masks(bits, axes, density[group, layer, heads].tolist(), change)
        for sharing in (table.mask_group[:, layer] == group).nonzero().flatten().tolist():
            density[sharing, layer, heads] = torch.tensor(kept)
    # A span has no more tokens than there are.
    constant = table.constant.clamp(max=float(new.layout.num_tokens))
    return replace(table, density=density, constant=constant, masks=masks)


def _extrapolated(table: PatternTable, tokens: int, new: Blocks) -> Tensor:
    """float32 ``[G, L, H]``: densities on the new grid by the rule of their heads."""
    grown = table.constant.double() * (1 / new.layout.num_tokens - 1 / tokens)
    density = (table.density.double() + grown).clamp(1 / new.counts[1], 1.0).float()
    return torch.where((table.kind == DENSE) | (table.kind == SKIP), table.density, density)


def _mean_density(table: PatternTable, groups: Groups) -> float:
    """Over the steps of all groups."""
    steps = torch.tensor([last - first for first, last in groups], dtype=torch.float64)
    return float((table.density.double().mean(dim=(1, 2)) * steps).sum() / steps.sum())
