"""A comparison as a Markdown page: one table per density, intervals, differences to a baseline, the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from dit_sparse.report.atomic import write_text
from dit_sparse.report.comparison_schema import Comparison, Row, Setup
from dit_sparse.report.intervals import mean_interval, paired_difference
from dit_sparse.report.pareto import write_plots

NOTHING = "-"
Cell = Callable[[Row], str]


def write_pages(folder: Path, comparison: Comparison, baseline: str | None = None) -> list[Path]:
    """Write ``comparison.md`` and the plots beside ``comparison.json``; return all their paths.

    Raises:
        ValueError: as :func:`markdown`.
        MissingExtraError: without matplotlib.
    """
    plots = write_plots(folder, comparison)
    write_text(folder / "comparison.md", markdown(comparison, baseline, plots))
    return [folder / name for name in ("comparison.json", "comparison.md", *plots)]


def markdown(comparison: Comparison, baseline: str | None = None, plots: tuple[str, ...] = ()) -> str:
    """The page.

    Args:
        comparison: its rows.
        baseline: label of the method that the others are compared with prompt by prompt, at their density.
        plots: names of image files beside the page.

    Raises:
        ValueError: if no row has the baseline's label.
    """
    setup = comparison.setup
    methods = [row for row in comparison.rows if row.kind == "method"]
    check_baseline(baseline, [row.label for row in methods])
    lines = ["# Methods against dense attention", "", *_heading(comparison)]
    others = [row for row in comparison.rows if row.kind != "method"]
    if others:
        lines += ["", "## Dense against dense", "", *_table(others, _columns(others))]
    for density in sorted({row.density for row in methods if row.density is not None}, reverse=True):
        rows = [row for row in methods if row.density == density]
        rows.sort(key=lambda row: -sum(row.psnr or [0.0]))
        base = comparison.find("method", baseline, density) if baseline is not None else None
        lines += ["", f"## Density {density:g}", "", *_table(rows, _columns(rows, base))]
    if fallbacks := sorted({f"{row.label}: {text}" for row in methods for text in row.fallbacks}):
        lines += ["", "Unplanned dense attention:", "", *(f"- {text}" for text in fallbacks)]
    for name in plots:
        lines += ["", f"![{name.rpartition('.')[0].replace('_', ' ')}]({name})"]
    if any(row.layers for row in methods):
        lines += ["", "## Output error by layer", "", *_layer_table([row for row in methods if row.layers])]
    return "\n".join([*lines, "", _legend(setup, baseline), ""])


def check_baseline(baseline: str | None, labels: Iterable[str]) -> None:
    """Raise ValueError unless the baseline is None or one of the compared methods."""
    known = list(dict.fromkeys(labels))
    if baseline is not None and baseline not in known:
        raise ValueError(
            f"the baseline {baseline!r} is none of the compared methods: use one of {', '.join(known)}"
        )


def _heading(comparison: Comparison) -> list[str]:
    setup, versions = comparison.setup, comparison.versions
    shape = " x ".join(str(setup.call[key]) for key in ("num_frames", "height", "width") if key in setup.call)
    lines = [
        f"{setup.model}, {shape}, {setup.call.get('num_inference_steps', '?')} steps, {len(setup.prompts)} "
        f"prompts, {setup.dtype}; {setup.device.name}, torch {versions.get('torch')}, "
        f"diffusers {versions.get('diffusers')}, dit-sparse {versions.get('dit-sparse')}."
    ]
    if comparison.command:
        lines = ["```", comparison.command, "```", "", *lines]
    return lines


def _columns(rows: list[Row], base: Row | None = None) -> dict[str, Cell]:
    """Column heads and what stands under them; columns that would be empty are left out."""
    columns: dict[str, Cell] = {
        "method": lambda row: f"`{row.label}`" if row.kind == "method" else row.label,
        "density in total": lambda row: f"{mean_interval(row.density_total).mean:.3f}",
        "PSNR, dB": lambda row: _interval(row.psnr, 2),
    }
    if base is not None:
        columns["difference to baseline, dB"] = lambda row: (
            paired_difference(row.psnr, base.psnr).text(2, "+")
            if row.psnr and base.psnr and row.key != base.key
            else NOTHING
        )
    columns["SSIM"] = lambda row: _interval(row.ssim, 4)
    if any(row.lpips for row in rows):
        columns["LPIPS"] = lambda row: _interval(row.lpips, 4)
    if any(row.denoise_s for row in rows):
        columns["denoising, s"] = lambda row: f"{median(row.denoise_s):.2f}" if row.denoise_s else NOTHING
    if any(row.attention_s for row in rows):
        columns["attention, s"] = lambda row: f"{median(row.attention_s):.2f}" if row.attention_s else NOTHING
    columns["kernel"] = lambda row: row.kernel
    if any(row.layers for row in rows):
        columns["output error"] = lambda row: (
            f"{mean_interval(row.layers.error).mean:.3f}" if row.layers else NOTHING
        )
        columns["mass recall"] = lambda row: (
            f"{mean_interval(row.layers.recall).mean:.3f}" if row.layers else NOTHING
        )
    return columns


def _table(rows: list[Row], columns: dict[str, Cell]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows),
    ]


def _layer_table(rows: list[Row]) -> list[str]:
    errors = [(row, row.layers.error) for row in rows if row.layers]
    layers = [str(layer) for layer in range(max(len(error) for _, error in errors))]
    lines = [f"| method | density | {' | '.join(layers)} |", f"|{'---|' * (2 + len(layers))}"]
    for row, error in errors:
        figures = " | ".join(f"{value:.3f}" for value in error)
        lines.append(f"| `{row.label}` | {row.density:g} | {figures} |")
    return lines


def _interval(values: list[float] | None, digits: int) -> str:
    return mean_interval(values).text(digits) if values else NOTHING


def _legend(setup: Setup, baseline: str | None) -> str:
    text = (
        "Mean over prompts with its 95% interval (Student's t); metrics on raw frames against dense "
        "attention from the same noise. "
        f"All methods leave the steps {setup.dense_steps!r} and the layers {setup.dense_layers!r} dense "
        "unless they say otherwise."
    )
    if setup.timed:
        text += " Times are medians over prompts and count everything."
    if setup.timed and setup.batch > 1:
        text += f" Prompts ran in batches of {setup.batch}; a prompt's time is its share of the batch's."
    if baseline is not None:
        text += f" Differences are paired, prompt by prompt, with `{baseline}` at the same density."
    return text
