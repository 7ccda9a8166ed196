"""Comparisons to a document: the tables between the marker comments of docs/methods.md, and its plots.

    python scripts/methods_page.py grid=comparison corrections=corrections

Every argument is NAME=FOLDER, a folder of ``dit-sparse compare`` or ``compare_methods.py``; what the page
asks for and no argument gives stays as it is. ``times=results.json`` gives the rows of the benchmark
"methods" of ``gpu_check.py``, for the plot of quality (of the page's grid) against measured time.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from gpu_bench.tables import MARKED

from dit_sparse.report.comparison_schema import Comparison, Row
from dit_sparse.report.intervals import mean_interval, paired_difference
from dit_sparse.report.pareto import write_plots

ROOT = Path(__file__).resolve().parents[1]
PAGE, IMAGES = ROOT / "docs" / "methods.md", ROOT / "docs" / "images"
ORDER = ("pooled", "reshape", "residual")
SHAPE = "Wan-14B 720p"
"""Where times are taken from, if they were measured there."""
REFERENCE = 0.2
"""The density at which methods are looked at closely."""


def rows_of(comparison: Comparison) -> list[Row]:
    """The rows of methods and profiles."""
    return [row for row in comparison.rows if row.kind == "method" and row.psnr]


def best_first(rows: list[Row]) -> list[Row]:
    """By PSNR."""
    return sorted(rows, key=lambda row: -mean(row.psnr or [0.0]))


def grid_table(comparison: Comparison) -> list[str]:
    """PSNR of every method over the densities, with the density in total; the floor above."""
    rows = rows_of(comparison)
    densities = sorted({row.density for row in rows if row.density}, reverse=True)
    found = {(row.series, row.density): row for row in rows}
    # Those that were not measured at the reference density follow.
    ranked = sorted(best_first(rows), key=lambda row: row.density != REFERENCE)
    order = list(dict.fromkeys(row.series for row in ranked))
    lines = [
        "| method | " + " | ".join(f"{d:g}" for d in densities) + " |",
        "|---" * (1 + len(densities)) + "|",
    ]
    for name in order:
        cells = [_psnr(found.get((name, density))) for density in densities]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines + floor_lines(comparison)


def floor_lines(comparison: Comparison) -> list[str]:
    """Dense against dense, in a sentence; nothing where it was not measured."""
    floors = [
        f"{row.label} {mean_interval(row.psnr).text(1)} dB"
        for row in comparison.rows
        if row.kind == "floor" and row.psnr
    ]
    return ["", f"Dense against dense, the floor: {'; '.join(floors)}."] if floors else []


def _psnr(row: Row | None) -> str:
    if row is None or not row.psnr:
        return ""
    return f"{mean_interval(row.psnr).text(1)} ({mean(row.density_total):.2f})"


def detail_table(comparison: Comparison) -> list[str]:
    """All figures at the reference density, and the paired difference to the best method."""
    rows = best_first([row for row in rows_of(comparison) if row.density == REFERENCE])
    best = rows[0]
    lpips, layers = any(row.lpips for row in rows), any(row.layers for row in rows)
    columns = ["method", "density in total", "PSNR, dB", "to the first", "SSIM"]
    columns += ["LPIPS"] if lpips else []
    columns += ["output error", "mass recall"] if layers else []
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        apart = paired_difference(row.psnr or [], best.psnr or []).text(1, "+") if row is not best else ""
        cells = [
            f"`{row.series}`",
            f"{mean(row.density_total):.3f}",
            mean_interval(row.psnr or []).text(1),
            apart,
        ]
        cells.append(mean_interval(row.ssim or []).text(3))
        if lpips:
            cells.append(mean_interval(row.lpips).text(3) if row.lpips else "")
        if layers:
            calls = (row.layers.error, row.layers.recall) if row.layers else ()
            cells += [f"{mean(values):.3f}" for values in calls] or ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def corrections_table(comparison: Comparison) -> list[str]:
    """What every correction adds to every method, prompt by prompt."""
    found: dict[str, dict[str, Row]] = {}
    for row in best_first(rows_of(comparison)):
        method, _, correction = row.label.partition(":correction=")
        found.setdefault(method, {})[correction] = row
    others = [name for name in ORDER if any(name in by for by in found.values())]
    lines = ["| method | none, dB | " + " | ".join(others) + " |", "|---" * (2 + len(others)) + "|"]
    for method, by in found.items():
        if "none" not in by:
            continue
        base = by["none"].psnr or []
        cells = [paired_difference(by[o].psnr or [], base).text(1, "+") if o in by else "" for o in others]
        lines.append(f"| `{method}` | {mean_interval(base).text(1)} | " + " | ".join(cells) + " |")
    return lines


TABLES: dict[str, tuple[str, Callable[[Comparison], list[str]]]] = {
    "grid": ("grid", grid_table),
    "detail": ("grid", detail_table),
    "corrections": ("corrections", corrections_table),
    "variants": ("variants", grid_table),
    "large": ("large", lambda comparison: detail_table(comparison) + floor_lines(comparison)),
}
"""(comparison, table) by the page's name."""


def heading(comparison: Comparison) -> list[str]:
    """Command, model, sizes, device and versions."""
    setup, versions = comparison.setup, comparison.versions
    size = " x ".join(str(setup.call[key]) for key in ("num_frames", "height", "width"))
    command = re.sub(r"[^\s=]*/(\S+\.(?:py|safetensors))", r"\1", comparison.command or "")
    command = shlex.join(_without_output(shlex.split(command)))
    facts = [
        f"{setup.model}, {size}, {setup.call['num_inference_steps']} steps",
        f"{len(setup.prompts)} held-out prompts, {setup.dtype}, {setup.device.name}",
        f"torch {versions.get('torch')}, diffusers {versions.get('diffusers')}",
        f"dense steps {setup.dense_steps}",
    ]
    command = command.replace("compare_methods.py", "scripts/compare_methods.py")
    lines = textwrap.wrap(command, 110, break_long_words=False, break_on_hyphens=False)
    return ["```", " \\\n    ".join(lines), "```", "", f"{'; '.join(facts)}.", ""]


def _without_output(words: list[str]) -> list[str]:
    """Where the folder lay is nobody's business."""
    if "--output" in words:
        at = words.index("--output")
        words = [*words[: at + 1], Path(words[at + 1]).name, *words[at + 2 :]]
    return words


def page_grid(text: str) -> dict[tuple[str, float], tuple[float, float]]:
    """(PSNR, half of its interval) by (method, density), from the table "grid" of the page."""
    table = next(match[3] for match in MARKED.finditer(text) if match[2] == "grid")
    head, _, *lines = (line for line in table.splitlines() if line.startswith("|"))
    densities = [float(cell) for cell in head.strip("| ").split(" | ")[1:]]
    found = {}
    for line in lines:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for density, cell in zip(densities, cells):
            if measured := re.match(r"([\d.]+) ± ([\d.]+)", cell):
                found[name.strip("`"), density] = (float(measured[1]), float(measured[2]))
    return found


def draw_times(grid: dict[tuple[str, float], tuple[float, float]], times: list[dict], image: Path) -> None:
    """Quality against the measured speed-up of attention over a run, a line per method through its
    densities."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "dit-sparse"
    shape = SHAPE if any(row["shape"] == SHAPE for row in times) else times[0]["shape"]
    speed = {
        (row["method"], row.get("asked")): row.get("run speed-up") for row in times if row["shape"] == shape
    }
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for (name, density), quality in sorted(grid.items(), key=lambda item: -item[1][0]):
        if fast := speed.get((name, density)):
            points.setdefault(name, []).append((fast, *quality, density))
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    single = {name: found[0] for name, found in points.items() if len(found) == 1}
    lines = {name: sorted(found) for name, found in points.items() if name not in single}
    for number, (name, found) in enumerate(lines.items()):
        x, y, half, densities = zip(*found)
        style = {"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.2, "color": f"C{number}"}
        axes.errorbar(x, y, yerr=half, **style)
        axes.annotate(name, (x[0], y[0]), xytext=(5, 5), textcoords="offset points", color=f"C{number}")
        for fast, quality, density in zip(x, y, densities) if number == 0 else ():
            axes.annotate(f"{density:g}", (fast, quality), xytext=(-4, -14), ha="right",
                          textcoords="offset points", fontsize="small")  # fmt: skip
    if single:
        names, found = zip(*sorted(single.items(), key=lambda item: -item[1][1]))
        x, y, half, _ = zip(*found)
        axes.errorbar(x, y, yerr=half, fmt="o", markersize=4, capsize=2, linewidth=0.8, color="0.55")
        right, height = max(x) + 0.45, y[0]
        for name, fast, quality in zip(names, x, y):
            height = min(height, quality + 1)  # names are kept a line apart
            arrow = {"arrowstyle": "-", "color": "0.8", "linewidth": 0.6}
            axes.annotate(name, (fast, quality), xytext=(right, height), fontsize="small", color="0.4",
                          va="center", arrowprops=arrow)  # fmt: skip
            height -= 1.1
    axes.set_xlabel(f"speed-up of attention over a run of 50 steps, {shape} shape, everything counted")
    axes.set_ylabel("PSNR against dense attention in dB, tiny-wan")
    axes.grid(alpha=0.3)
    figure.savefig(image, metadata={"Date": None})


def main() -> int:
    """Fill the page from the folders named on the command line."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if not given:
        print(__doc__)
        return 2
    found = {
        name: Comparison.model_validate_json((Path(folder) / "comparison.json").read_text(encoding="utf-8"))
        for name, folder in given.items()
        if name != "times"
    }
    if unknown := set(found) - {source for source, _ in TABLES.values()}:
        raise SystemExit(
            f"unknown {', '.join(sorted(unknown))}: use grid, corrections, variants, large or times"
        )

    def fill(match: re.Match[str]) -> str:
        source, table = TABLES.get(match[2], ("", grid_table))
        if source not in found:
            return match[0]
        comparison = found[source]
        head = [] if match[2] == "detail" else heading(comparison)
        return match[1] + "\n".join([*head, *table(comparison)]) + "\n" + match[4]

    PAGE.write_text(MARKED.sub(fill, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    if "grid" in found:
        write_plots(Path(given["grid"]), found["grid"])
        shutil.copy(Path(given["grid"]) / "quality_density.svg", IMAGES / "quality-density.svg")
    if "times" in given:
        rows = json.loads(Path(given["times"]).read_text(encoding="utf-8"))["results"]["methods"]
        draw_times(page_grid(PAGE.read_text(encoding="utf-8")), rows, IMAGES / "quality-time.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
