"""Pictures of a pattern file, drawn with matplotlib: choices and densities of all heads, masks of some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dit_sparse.orderings import AXIS_ORDERS
from dit_sparse.patterns import KINDS, Profile
from dit_sparse.patterns.atomic import atomic_path
from dit_sparse.report.extras import require
from dit_sparse.report.profile_maps import Place, head_pairs

KIND_COLOURS = ("#30343b", "#e3e6ea", "#0b5cc0", "#2b9348", "#e09f1f", "#b5379b", "#17a2b3")
"""Of dense, skip, mask, window, radial, dynamic, observed; the order of KINDS."""
DENSITY_COLOURS = "viridis_r"
DPI = 130
CELL = 0.24
"""Inches per head and layer, at most."""
LONGEST = 7.0
"""Inches of a panel, at most."""
MAP = "map.png"


def write_pictures(folder: Path, profile: Profile, places: Sequence[Place] = ()) -> list[Path]:
    """Write ``map.png`` and ``mask_GROUP_LAYER_HEAD.png`` of every place.

    Args:
        folder: made where it is missing.
        profile: to draw.
        places: heads whose masks are drawn.

    Returns:
        The files.

    Raises:
        MissingExtraError: without matplotlib.
        ProfileError: for the mask of a dynamic or observed head.
    """
    drawn = [(MAP, map_figure(profile))]
    for place in places:
        name = "mask_{}_{}_{}.png".format(*place)
        drawn.append((name, mask_figure(profile, place, head_pairs(profile, place))))
    paths = []
    for name, figure in drawn:
        with atomic_path(folder / name) as path:
            figure.savefig(path, dpi=DPI, metadata={"Software": None})
        paths.append(folder / name)
    return paths


def map_figure(profile: Profile) -> Any:
    """Choices above, densities below, a column per step group; a row per layer, a column per head."""
    header, table = profile.header, profile.table
    colors = require("matplotlib.colors")
    groups, layers, heads = table.sizes
    cell = min(CELL, LONGEST / max(layers, heads))
    wide, tall = max(1.3, heads * cell), max(1.1, layers * cell)
    figure = require("matplotlib.figure").Figure(
        figsize=(groups * (wide + 0.35) + 2.4, 2 * (tall + 0.5) + 1.1), layout="constrained"
    )
    axes = figure.subplots(2, groups, squeeze=False, sharex=True, sharey=True)
    kinds = colors.ListedColormap(KIND_COLOURS)
    shown = None
    for g, (first, last) in enumerate(header.schedule.groups):
        axes[0, g].imshow(table.kind[g], cmap=kinds, vmin=-0.5, vmax=len(KINDS) - 0.5, aspect="auto")
        shown = axes[1, g].imshow(
            table.density[g], cmap=DENSITY_COLOURS, norm=colors.LogNorm(0.01, 1.0, clip=True), aspect="auto"
        )
        axes[0, g].set_title(f"steps {first} to {last - 1}", fontsize=9)
        axes[1, g].set_xlabel("head", fontsize=9)
    for axis in axes.flat:
        _ticks(axis, heads, layers)
    for row, name in enumerate(("choice", "density")):
        axes[row, 0].set_ylabel(f"{name}\nlayer", fontsize=9)
    there = sorted(set(table.kind.flatten().tolist()))
    patches = require("matplotlib.patches")
    figure.legend(
        handles=[patches.Patch(facecolor=KIND_COLOURS[k], edgecolor="#777", label=KINDS[k]) for k in there],
        loc="outside lower center",
        ncols=len(there),
        fontsize=8,
        frameon=False,
    )
    bar = figure.colorbar(shown, ax=axes[1].tolist(), pad=0.02, ticks=(0.01, 0.03, 0.1, 0.3, 1.0))
    bar.ax.set_yticklabels(["1%", "3%", "10%", "30%", "100%"], fontsize=8)
    bar.ax.minorticks_off()
    figure.suptitle(
        f"{header.recipe} for {header.model.name}: {header.figures.density:.1%} of the block pairs in the "
        "sparse steps",
        fontsize=10,
    )
    return figure


def mask_figure(profile: Profile, place: Place, pairs: Tensor) -> Any:
    """Pairs of one head, dark where they are computed.

    Args:
        profile: where the head is from.
        place: (step group, layer, head).
        pairs: bool ``[nQ, nK]``.
    """
    group, layer, head = place
    header, table = profile.header, profile.table
    figure = require("matplotlib.figure").Figure(figsize=(4.6, 4.9), layout="constrained")
    axis = figure.add_subplot()
    axis.imshow(pairs.float(), cmap="Greys", vmin=0.0, vmax=1.15, interpolation="nearest")
    first, last = header.schedule.groups[group]
    axis.set_title(
        f"layer {layer}, head {head}, steps {first} to {last - 1}\n{KINDS[int(table.kind[place])]}, "
        f"{float(pairs.float().mean()):.1%} of the pairs",
        fontsize=10,
    )
    size = header.grid.block_size
    order = AXIS_ORDERS[int(table.axes[place])]
    axis.set_xlabel(f"key block of {size[1]} tokens, in the order {order}", fontsize=9)
    axis.set_ylabel(f"query block of {size[0]} tokens", fontsize=9)
    axis.tick_params(labelsize=8)
    return figure


def _ticks(axis: Any, heads: int, layers: int) -> None:
    """Whole numbers, not more than fit."""
    for count, set_ticks in ((heads, axis.set_xticks), (layers, axis.set_yticks)):
        set_ticks(range(0, count, -(-count // 10)))
    axis.tick_params(labelsize=8, length=2)
