"""Heat maps of the page: values by layer and step or head, as cells that the template only prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dit_sparse.report.schema import HeadChoices, HeadMap, HeatMap, Recall, RecallMap
from dit_sparse.report.templating import percent

PLAIN_REASONS = {
    "dense_step": "dense step",
    "dense_layer": "dense layer",
    "min_tokens": "short sequence",
    "observed": "method learns from dense attention",
}
FINE = 24  # more columns than this stand without gaps
TIMES = "\N{MULTIPLICATION SIGN}"
STEP, HEAD = ("step", 1), ("head", 0)  # how columns are counted: steps from 1, heads from 0 like layers


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        title: in words, for the pointer.
        style: CSS classes; empty for a value.
        shade: place on the colour scale, 0 to 1.
        guarded: the same with the dense guard, where the map has it.
    """

    title: str
    style: str = ""
    shade: float | None = None
    guarded: float | None = None


@dataclass(frozen=True)
class Grid:
    """A heat map: rows are layers.

    Args:
        columns: what columns are, their first and last label.
    """

    title: str
    about: str
    columns: tuple[str, int, int]
    layers: tuple[int, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def fine(self) -> bool:
        """Whether the cells stand without gaps."""
        return len(self.rows[0]) > FINE


def density_top(heat: Iterable[HeatMap], heads: Iterable[HeadMap] = ()) -> float:
    """Upper end of the colour scale: the largest density of a sparse cell, rounded up to a tenth."""
    sparse = [
        density
        for made in heat
        for densities, reasons in zip(made.density, made.dense_reason)
        for density, reason in zip(densities, reasons)
        if density is not None and reason is None
    ]
    sparse += [value for made in heads for row in made.sparse if row for value in row]
    return min(1.0, math.ceil(max(sparse) * 10 - 1e-9) / 10) if sparse else 1.0


def density_by_step(made: HeatMap, top: float) -> Grid:
    """Layer x step."""

    def cell(layer: int, step: int, density: float | None, reason: str | None) -> Cell:
        where = f"layer {layer}, step {step + 1}"
        if density is None:
            return Cell(f"{where}: not run", "empty")
        if reason is None:
            return Cell(f"{where}: {percent(density)}", "", density / top, density)
        plain = PLAIN_REASONS.get(reason, reason.replace("_", " "))
        style = f"cell {reason if reason in PLAIN_REASONS else 'other'}"
        return Cell(f"{where}: {percent(density)} ({plain})", style)

    rows = [
        tuple(cell(layer, *values) for values in zip(made.steps, densities, reasons))
        for layer, densities, reasons in zip(made.layers, made.density, made.dense_reason)
    ]
    return _grid(made.transformer, "density", made.layers, made.steps, STEP, rows)


def density_by_head(made: HeadMap, top: float) -> Grid:
    """Layer x head."""

    def row(layer: int, sparse: list[float] | None, total: list[float]) -> tuple[Cell, ...]:
        if sparse is None:
            return tuple(
                Cell(f"layer {layer}, head {head}: dense at every call", "cell dense_layer")
                for head in range(len(total))
            )
        return tuple(
            Cell(
                f"layer {layer}, head {head}: {percent(kept)}, with dense guard {percent(all_calls)}",
                "",
                kept / top,
                all_calls,
            )
            for head, (kept, all_calls) in enumerate(zip(sparse, total))
        )

    rows = [row(*values) for values in zip(made.layers, made.sparse, made.total)]
    return _grid(made.transformer, "density", made.layers, range(len(made.total[0])), HEAD, rows)


def recall_bottom(recall: Recall) -> float:
    """Lower end of the colour scale: the smallest cell, rounded down to a tenth, at most 0.9."""
    cells = [v for made in recall.maps for rows in (made.by_step, made.by_head) for row in rows for v in row]
    return min(0.9, math.floor(min(v for v in cells if v is not None) * 10 + 1e-9) / 10)


def recall_grids(recall: Recall) -> list[Grid]:
    """Layer x step and layer x head of every denoiser. The stronger the colour, the more is missed."""
    bottom = recall_bottom(recall)

    def cell(name: str, layer: int, column: int, value: float | None) -> Cell:
        where = f"layer {layer}, {name} {column}"
        if value is None:
            return Cell(f"{where}: no sparse call", "empty")
        return Cell(f"{where}: {percent(value)}", "", min(1.0, max(0.0, (1.0 - value) / (1.0 - bottom))))

    def grid(
        made: RecallMap,
        counted: tuple[str, int],
        columns: Sequence[int],
        values: Sequence[Sequence[float | None]],
    ) -> Grid:
        name, first = counted
        rows = [
            tuple(cell(name, layer, column + first, value) for column, value in zip(columns, row))
            for layer, row in zip(made.layers, values)
        ]
        return _grid(made.transformer, "recall", made.layers, columns, counted, rows)

    return [
        made_grid
        for made in recall.maps
        for made_grid in (
            grid(made, STEP, made.steps, made.by_step),
            grid(made, HEAD, range(len(made.by_head[0])), made.by_head),
        )
    ]


def choice_grids(choices: HeadChoices) -> list[Grid]:
    """One layer x head map per step group; the style is the kind's number."""
    grids = []
    for (first, last), layers in zip(choices.steps, choices.kinds):
        rows = [
            tuple(
                Cell(f"layer {layer}, head {head}: {choices.names[kind]}", f"kind-{kind}")
                for head, kind in enumerate(heads)
            )
            for layer, heads in enumerate(layers)
        ]
        title = f"{choices.transformer}, steps {first + 1} to {last} of {choices.num_steps}"
        grid = _grid(title, "kind", range(len(layers)), range(len(layers[0])), HEAD, rows)
        grids.append(replace(grid, title=title))
    return grids


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _grid(
    name: str,
    what: str,
    layers: Iterable[int],
    columns: Iterable[int],
    counted: tuple[str, int],
    rows: Iterable[tuple[Cell, ...]],
) -> Grid:
    layers, columns, rows = tuple(layers), list(columns), tuple(rows)
    kind, first = counted
    title = f"{name}: {_counted(len(layers), 'layer')} {TIMES} {_counted(len(columns), kind)}"
    about = f"{what.capitalize()} of {name} by layer and {kind}"
    return Grid(title, about, (kind, columns[0] + first, columns[-1] + first), layers, rows)
