"""Pictures of attention, drawn with matplotlib: maps with recall curves, and query points on the video.

White ground and dark text, so that they can be read wherever they are pasted. Mass is on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_sparse.report.attention_inspection import HeadMaps, Inspection
from dit_sparse.report.attention_maps import text_blocks
from dit_sparse.report.attention_page import DECADES, frame_of_token
from dit_sparse.report.extras import require

MAP_COLOURS, HEAT_COLOURS = "magma_r", "inferno"
QUERY_COLOUR, TEXT_COLOUR = "#00d5e0", "#0b5cc0"
HEADS_PER_PICTURE = 8
FRAMES_PER_PICTURE = 8
FRAME_PIXELS = 160
"""Height of a frame in the pictures of points."""
DPI = 110
CURVES = (
    ("window", "uniform window", "#8a94a0", "-"),
    ("oracle_raster", "oracle, model's order", "#0b5cc0", ":"),
    ("oracle", "oracle", "#0b5cc0", "-"),
    ("method", "method", "#c4550f", "-"),
)


def figures(seen: Inspection) -> Iterator[tuple[str, Any]]:
    """(file name, matplotlib figure) of every picture, made one at a time.

    ``maps_*`` has a column per head: mass in the model's order, in the method's, what the method keeps of it,
    recall over density. ``point_*`` has a row per head: the softmax of one query on the frames.

    Raises:
        MissingExtraError: without matplotlib.
    """
    for (step, layer), group in groupby(seen.heads, lambda maps: (maps.figures.step, maps.figures.layer)):
        found = list(group)
        pages = [found[i : i + HEADS_PER_PICTURE] for i in range(0, len(found), HEADS_PER_PICTURE)]
        for number, heads in enumerate(pages):
            place = f"step{step:02d}_layer{layer:02d}" + (f"_part{number}" if len(pages) > 1 else "")
            yield f"maps_{place}.png", maps_figure(seen, heads)
            for index in range(len(seen.points)):
                yield f"point{index}_{place}.png", point_figure(seen, heads, index)


def picture_count(seen: Inspection) -> int:
    """How many :func:`figures` makes."""
    wanted = seen.wanted
    pages = -(-len(wanted.heads) // HEADS_PER_PICTURE)
    return len(wanted.steps) * len(wanted.layers) * pages * (1 + len(seen.points))


def maps_figure(seen: Inspection, heads: Sequence[HeadMaps]) -> Any:
    """Maps and curves of some heads of one step and layer."""
    colors = require("matplotlib.colors")
    reordered = any(maps.ordered is not None for maps in heads)
    rows = ["raster", "ordered", "kept", "recall"] if reordered else ["raster", "kept", "recall"]
    top = max(float(maps.raster.max()) for maps in heads)
    norm = colors.LogNorm(top * 10**-DECADES, top, clip=True)
    figure, axes, right = _board(len(rows), len(heads), (2.1, 2.1), gap=(0.45, 0.65))
    first = heads[0].figures
    method = seen.wanted.method.name
    figure.suptitle(
        f"step {first.step} of 0 to {seen.num_steps - 1}, layer {first.layer}: {method}", fontsize=11
    )
    for column, maps in enumerate(heads):
        axes[0, column].set_title(f"head {maps.figures.head}", fontsize=10)
        for row, kind in enumerate(rows[:-1]):
            _draw_map(axes[row, column], seen, maps, kind, norm)
        _draw_curves(axes[-1, column], maps)
    names = {"raster": "model's order", "ordered": "method's order", "kept": f"kept by {method}"}
    for row, kind in enumerate(rows[:-1]):
        axes[row, 0].set_ylabel(f"{names[kind]}\nquery block", fontsize=9)
    axes[-1, 0].set_ylabel("share of the softmax", fontsize=9)
    handles, labels = axes[-1, 0].get_legend_handles_labels()
    axes[-1, -1].legend(handles, labels, loc="lower right", fontsize=6.5, framealpha=0.9)
    mappable = require("matplotlib.cm").ScalarMappable(norm, MAP_COLOURS)
    bar = figure.colorbar(mappable, cax=right)
    bar.set_label("share of a query block's softmax", fontsize=9)
    return figure


def point_figure(seen: Inspection, heads: Sequence[HeadMaps], index: int) -> Any:
    """The softmax of one query point in some heads of one step and layer, on the decoded frames."""
    colors = require("matplotlib.colors")
    query, shown = seen.points[index], shown_frames(heads, index)
    top = max(float(maps.points[index].max()) for maps in heads)
    norm = colors.LogNorm(top * 10**-DECADES, top, clip=True)
    colours = require("matplotlib").colormaps[HEAT_COLOURS]
    strips = [_strip(seen, maps, index, shown, norm, colours) for maps in heads]
    tall, wide = strips[0].shape[:2]
    scale = 1.45 / FRAME_PIXELS
    figure, board, right = _board(len(heads), 1, (wide * scale, tall * scale), gap=(0, 0.3))
    axes = board[:, 0]
    first = heads[0].figures
    figure.suptitle(
        f"step {first.step} of 0 to {seen.num_steps - 1}, layer {first.layer}: "
        f"query at t {query[0]}, h {query[1]}, w {query[2]}",
        fontsize=11,
    )
    pitch, frames = wide / len(shown), frame_of_token(seen)
    for axis, strip, maps in zip(axes, strips, heads):
        row = maps.figures.points[index]
        axis.imshow(strip, interpolation="nearest")
        text = f"\ntext {row.text:.1%}" if seen.layout.text_tokens else ""
        axis.set_ylabel(f"head {maps.figures.head}{text}", fontsize=9, rotation=0, ha="right", va="center")
        axis.set_xticks(
            [(i + 0.5) * pitch for i in range(len(shown))],
            [f"frame {frames[t]}: {row.frames[t]:.1%}" for t in shown],
            fontsize=7.5,
        )
        axis.set_yticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    mappable = require("matplotlib.cm").ScalarMappable(norm, HEAT_COLOURS)
    bar = figure.colorbar(mappable, cax=right)
    bar.set_label("share of the softmax per token", fontsize=9)
    return figure


def _board(
    rows: int, columns: int, cell: tuple[float, float], gap: tuple[float, float]
) -> tuple[Any, NDArray[Any], Any]:
    """A figure with equal axes and one for a colour bar at their right.

    Placed by hand: matplotlib's layout engines draw a figure several times to find its margins.

    Args:
        rows, columns: of axes.
        cell: width and height of one, inches.
        gap: between them, along both.

    Returns:
        The figure, axes ``[rows, columns]``, axes of the colour bar.
    """
    left, below, above, after = 0.95, 0.5, 0.65, 0.95
    step = (cell[0] + gap[0], cell[1] + gap[1])
    width = left + columns * step[0] - gap[0] + after
    height = below + rows * step[1] - gap[1] + above
    figure = require("matplotlib.figure").Figure(figsize=(width, height), dpi=DPI)

    def place(x: float, y: float, wide: float, tall: float) -> Any:
        return figure.add_axes((x / width, y / height, wide / width, tall / height))

    axes = [
        [
            place(left + column * step[0], below + (rows - 1 - row) * step[1], *cell)
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    tall = min(rows * step[1] - gap[1], 4.0)
    right = place(width - after + 0.2, height - above - tall, 0.14, tall)
    return figure, np.array(axes, dtype=object), right


def shown_frames(heads: Sequence[HeadMaps], index: int) -> list[int]:
    """Frames of tokens that a picture has room for: the query's, and those that hold most in any head."""
    query = heads[0].figures.points[index].query
    weight = np.max([maps.figures.points[index].frames for maps in heads], axis=0)
    weight[query[0]] = np.inf
    return sorted(int(t) for t in np.argsort(-weight, kind="stable")[:FRAMES_PER_PICTURE])


def _draw_map(axis: Any, seen: Inspection, maps: HeadMaps, kind: str, norm: Any) -> None:
    """One map; "kept" leaves what the method skips in grey."""
    mass = (maps.raster if kind == "raster" else maps.in_order).numpy()
    if kind == "kept":
        colours = require("matplotlib").colormaps[MAP_COLOURS]
        axis.imshow(
            kept_overlay(colours(norm(mass))[..., :3], maps.kept.float().numpy()), interpolation="nearest"
        )
        axis.set_title(
            f"{maps.figures.density:.0%} of the blocks, {maps.figures.recall:.1%} of the mass", fontsize=7.5
        )
    else:
        axis.imshow(mass, norm=norm, cmap=MAP_COLOURS, interpolation="nearest")
    axis.tick_params(labelsize=7)
    axis.set_xlabel("key block", fontsize=8)
    text = text_blocks(
        seen.layout, seen.block_size[0], reordered=kind != "raster" and maps.ordered is not None
    )
    if text is not None:
        for draw in (axis.axvspan, axis.axhspan):
            draw(text[0] - 0.5, text[1] + 0.5, color=TEXT_COLOUR, alpha=0.18, linewidth=0)
        axis.text(
            text[0] - 0.4, -0.7, "text", color=TEXT_COLOUR, fontsize=7, va="bottom", ha="left", clip_on=False
        )


def kept_overlay(colours: NDArray[np.float64], kept: NDArray[np.float32]) -> NDArray[np.float64]:
    """Skipped blocks of a coloured map ``[nQ, nK, 3]`` in light grey, by the share that is skipped."""
    grey = 0.55 * (colours @ np.array([0.3, 0.59, 0.11]))[..., None] + 0.45
    return colours * kept[..., None] + grey * (1 - kept[..., None])


def _draw_curves(axis: Any, maps: HeadMaps) -> None:
    """Recall over density of one head, and where the method stands."""
    for name, label, colour, style in CURVES:
        if name == "oracle_raster" and maps.ordered is None:
            continue
        curve = getattr(maps.figures.curves, name)
        order = np.argsort(curve.density, kind="stable")
        axis.plot(
            np.array(curve.density)[order],
            np.array(curve.recall)[order],
            label=label,
            color=colour,
            linestyle=style,
            linewidth=1.4,
        )
    axis.plot([maps.figures.density], [maps.figures.recall], "o", color=CURVES[-1][2], markersize=5)
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axis.set_xlabel("density", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)


def _strip(
    seen: Inspection, maps: HeadMaps, index: int, shown: Sequence[int], norm: Any, colours: Any
) -> NDArray[np.float64]:
    """Frames side by side with heat over them and the query outlined, ``[rows, columns, 3]`` in [0, 1]."""
    assert seen.frames is not None
    query, frames = seen.points[index], frame_of_token(seen)
    _, tall, wide, _ = seen.frames.shape
    height = FRAME_PIXELS
    width = max(1, round(FRAME_PIXELS * wide / tall))
    y, x = (np.arange(size) for size in (height, width))
    parts = []
    for t in shown:
        frame = seen.frames[frames[t]][(y * tall // height)[:, None], x * wide // width]
        share = maps.points[index, t].numpy()
        rows, columns = y * share.shape[0] // height, x * share.shape[1] // width
        level = np.asarray(norm(share))[rows[:, None], columns]
        part = heat_over(frame, level, colours)
        if t == query[0]:
            _outline(part, rows == query[1], columns == query[2])
        parts.append(np.pad(part, ((2, 2), (2, 2), (0, 0)), constant_values=1.0))
    return np.concatenate(parts, axis=1)


def heat_over(frame: NDArray[Any], level: NDArray[Any], colours: Any) -> NDArray[np.float64]:
    """A frame ``[h, w, 3]`` in dim grey under heat ``[h, w]`` in [0, 1], opaque where strong."""
    grey = 0.75 * (frame @ np.array([0.3, 0.59, 0.11]))[..., None]
    over = 0.92 * np.clip(level, 0.0, 1.0)[..., None]  # the norm rounds a little below 0
    return np.asarray(grey * (1 - over) + colours(level)[..., :3] * over)


def _outline(part: NDArray[np.float64], rows: NDArray[Any], columns: NDArray[Any]) -> None:
    """Draw the border around the pixels of one token, two pixels wide, in place."""
    (y, x), edge = (np.flatnonzero(side) for side in (rows, columns)), 2
    inside = np.zeros(part.shape[:2], dtype=bool)
    inside[y[0] : y[-1] + 1, x[0] : x[-1] + 1] = True
    around = np.zeros_like(inside)
    around[max(y[0] - edge, 0) : y[-1] + 1 + edge, max(x[0] - edge, 0) : x[-1] + 1 + edge] = True
    part[around & ~inside] = require("matplotlib.colors").to_rgb(QUERY_COLOUR)
