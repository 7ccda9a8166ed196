"""Quality against cost: one line per method over its densities, the floor above them, the front marked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

from dit_sparse.report.atomic import atomic_path
from dit_sparse.report.comparison_schema import Comparison, Row
from dit_sparse.report.extras import require
from dit_sparse.report.intervals import mean_interval

FORMATS = ("png", "svg")
TIME = "quality_time"
COSTS: dict[str, tuple[str, Callable[[Row], float]]] = {
    "quality_density": (
        "attention blocks computed, dense guard included",
        lambda row: mean(row.density_total),
    ),
    TIME: ("denoising time in s, median over prompts", lambda row: median(row.denoise_s or [0.0])),
}
MARKERS = "osD^vP*X<>ph8d"


def pareto_front(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, quality) points that no other beats in both, by rising cost."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


def write_plots(folder: Path, comparison: Comparison) -> tuple[str, ...]:
    """Write ``quality_density`` and, of a timed comparison, ``quality_time``, each as PNG and SVG; return the
    PNGs' names.

    Raises:
        MissingExtraError: without matplotlib.
    """
    rows = [row for row in comparison.rows if row.kind == "method" and row.psnr]
    if not rows:
        return ()
    costs = {name: cost for name, cost in COSTS.items() if comparison.setup.timed or name != TIME}
    for name, (label, cost) in costs.items():
        figure = draw(comparison, rows, label, cost)
        for suffix in FORMATS:
            # No date and fixed ids: the same figures give the same file.
            metadata = {"Date": None} if suffix == "svg" else {"Software": None}
            with atomic_path(folder / f"{name}.{suffix}") as path:
                figure.savefig(path, dpi=150, metadata=metadata)
    return tuple(f"{name}.png" for name in costs)


def draw(comparison: Comparison, rows: list[Row], label: str, cost: Callable[[Row], float]) -> Any:
    """The figure of one kind of cost."""
    matplotlib = require("matplotlib")
    matplotlib.rcParams["svg.hashsalt"] = "dit-sparse"
    points = [(cost(row), mean_interval(row.psnr or []).mean) for row in rows]
    labels = list(dict.fromkeys(row.series for row in rows))
    # The legend has a line for each.
    figure = require("matplotlib.figure").Figure(
        figsize=(9, max(5.5, 0.24 * len(labels))), layout="constrained"
    )
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["tab20"].colors
    for i, name in enumerate(labels):
        own = [(*point, row) for point, row in zip(points, rows) if row.series == name]
        own.sort(key=lambda entry: entry[0])
        axes.errorbar(
            [x for x, _, _ in own],
            [y for _, y, _ in own],
            yerr=[mean_interval(row.psnr or []).half or 0.0 for _, _, row in own],
            label=name,
            color=colours[i % len(colours)],
            marker=MARKERS[i % len(MARKERS)],
            linewidth=1.2,
            elinewidth=0.6,
            capsize=2,
        )
    front = [points[i] for i in pareto_front(points)]
    axes.plot(*zip(*front), color="black", linewidth=0.8, linestyle=":", label="front", zorder=0)
    floors = [row for row in comparison.rows if row.kind == "floor" and row.psnr]
    for i, (level, name) in enumerate(
        sorted((mean_interval(row.psnr or []).mean, row.label) for row in floors)
    ):
        axes.axhline(level, color="grey", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"{name}: {level:.1f} dB",
            (0.01, level),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2 if i else -2),
            textcoords="offset points",
            va="bottom" if i else "top",
        )
    axes.set_xlabel(label)
    axes.set_ylabel("PSNR against dense attention in dB, mean over prompts")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
