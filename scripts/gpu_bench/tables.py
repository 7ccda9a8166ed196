"""Result files to documents: tables between the marker comments of a page, and the plot of speed-ups.

A page names a table by ``<!-- measured: NAME -->`` and ends it by ``<!-- end -->``; what lies between is
replaced, everything else stays. A name is that of a benchmark, one of :data:`VIEWS`, "plot" for the speed-ups
of "attention", or "others" for all benchmarks that the page does not name.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from gpu_bench.harness import DENSITIES, Row

MARKED = re.compile(r"(<!-- measured: (\S+) -->\n)(.*?)(<!-- end -->)", flags=re.S)
SPEEDUP = "speedup_vs_best_dense"
KEYS = ("shape", "what", "N", "H", "D", "batch")
"""Columns that are left blank where they repeat the row above."""
RANDOM_DATA = "random data"
EMBEDDED_DATA = "attention calls of the embedded model"
"""What the benchmarks of its name compute on."""

Report = dict
"""What ``gpu_check.py --json`` writes: command, environment, tests, results by benchmark."""


def render(report_path: Path, page: Path, image: Path) -> list[str]:
    """Write the tables of one result file into a page; the names written.

    Args:
        report_path: result file.
        page: Markdown page with markers; those without results in this file stay as they are.
        image: SVG file of the plot, written when the page asks for "plot".

    Raises:
        ValueError: if the file is no result file, or the page asks for nothing that it holds.
    """
    report = json.loads(report_path.read_text(encoding="utf-8"))
    if not isinstance(report, dict) or not {"command", "environment", "results"} <= report.keys():
        raise ValueError(f"{report_path} is not what gpu_check.py --json writes")
    results, written = report["results"], []
    text = page.read_text(encoding="utf-8")
    asked = [match[2] for match in MARKED.finditer(text)]
    named = {VIEWS[name][0] if name in VIEWS else name for name in asked}

    def fill(match: re.Match[str]) -> str:
        opening, name, _, closing = match.groups()
        parts: list[str] = []
        if name == "plot":
            if "attention" in results:
                draw(results["attention"], image)
                where = image.relative_to(page.parent).as_posix()
                parts = [f"![Speed-up of attention against density, with the limit 1/density]({where})"]
        elif name == "others":
            for other in (name for name in results if name not in named):
                parts += [f"### {other}", markdown(results[other])]
        elif (rows := view(name, results)) is not None:
            parts = [markdown(rows)]
        if not parts:
            return match[0]
        written.append(name)
        if name != "plot":
            parts.append(caption(report, EMBEDDED_DATA if name.startswith("embedded") else RANDOM_DATA))
        return opening + "\n\n".join(parts) + "\n" + closing

    filled = MARKED.sub(fill, text)
    if not written:
        raise ValueError(
            f"{page} asks for {', '.join(asked) or 'nothing'}; {report_path} holds {', '.join(results)}"
        )
    page.write_text(filled, encoding="utf-8")
    return written


def view(name: str, results: dict[str, list[Row]]) -> list[Row] | None:
    """The rows that a page's name stands for; None if they were not measured."""
    source, select = VIEWS.get(name, (name, list))
    return select(results[source]) if source in results else None


def _without(rows: list[Row], *columns: str) -> list[Row]:
    return [{key: value for key, value in row.items() if key not in columns} for row in rows]


def _failed(row: Row) -> bool:
    """Whether a row only says why there is no figure."""
    return bool(row.get("note")) and row.get("ms") is None and row.get("hours") is None


def _planning(rows: list[Row]) -> list[Row]:
    """Shares only, with the dense ms that they are shares of."""
    dense = {row["shape"]: row.get("attend") for row in rows if str(row.get("method")).startswith("dense")}
    shares = [row | {"dense ms": dense.get(row["shape"])} for row in rows if row.get("unit") == "% of dense"]
    return _without([*shares, *filter(_failed, rows)], "unit", "N", "H", "D")


def _layers(rows: list[Row]) -> list[Row]:
    return _without([row for row in rows if row.get("ms") is not None or _failed(row)], "seconds")


def _runs(rows: list[Row]) -> list[Row]:
    return _without([row for row in rows if row.get("seconds") is not None], "ms", "batch")


VIEWS: dict[str, tuple[str, Callable[[list[Row]], list[Row]]]] = {
    "planning": ("planning", _planning),
    "layers": ("layers", _layers),
    "runs": ("layers", _runs),
}
"""(benchmark, its rows to rows of the page) by the page's name; any other benchmark is shown as it is."""


def markdown(rows: list[Row]) -> str:
    """A Markdown table; rows that only say why there is no figure are listed below it."""
    shown = [row for row in rows if not _failed(row)]
    columns = [
        name
        for name in dict.fromkeys(key for row in shown for key in row)
        if any(row.get(name) is not None for row in shown)
    ]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)] if shown else []
    above: Row = {}
    for row in shown:
        same = bool(above)  # a key is blank only while the keys before it repeat, too
        cells = []
        for name in columns:
            same = same and above.get(name) == row.get(name)
            cells.append("" if name in KEYS and same else _cell(row.get(name)))
        lines.append("| " + " | ".join(cells) + " |")
        above = row
    reasons = dict.fromkeys(f"- {_label(row)}: {row['note']}" for row in rows if _failed(row))
    if reasons:
        lines += [*([""] if lines else []), "Not measured:", "", *reasons]
    return "\n".join(lines)


def _label(row: Row) -> str:
    keys = ("shape", "kernel", "mode", "method")
    return ", ".join(str(row[key]) for key in keys if row.get(key) is not None) or "everything"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")


def caption(report: Report, data: str = RANDOM_DATA) -> str:
    """Command, GPU, versions and what was computed on, in one paragraph."""
    program, *arguments = report["command"]
    # Where a result file lay is nobody's business.
    words = ["python", f"scripts/{Path(program).name}", *(Path(word).name for word in arguments)]
    env = dict(report["environment"])
    found = ", ".join([str(env.pop("gpu", "no GPU")), *(f"{name} {value}" for name, value in env.items())])
    return f"`{shlex.join(words)}`: {found}; bfloat16, {data}. GPU tests: {report.get('tests')}."


def speedup_series(rows: list[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """(density, speed-up) points of the sparse kernels, by shape and kernel, densities ascending."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        if str(row.get("kernel", "")).startswith("sparse") and row.get(SPEEDUP) is not None:
            kernels = series.setdefault(str(row["shape"]), {})
            point = (float(row["density"]), float(row[SPEEDUP]))  # type: ignore[arg-type]
            kernels.setdefault(str(row["kernel"]), []).append(point)
    return {shape: {name: sorted(points) for name, points in by.items()} for shape, by in series.items()}


def draw(rows: list[Row], image: Path) -> None:
    """Speed-up against density, a panel for each shape, the limit 1/density drawn in; the same rows give the
    same file."""
    import matplotlib

    series = speedup_series(rows)
    if not series:
        raise ValueError("no sparse kernel has a speed-up: there is nothing to plot")
    with matplotlib.rc_context({"svg.hashsalt": "dit_sparse", "svg.fonttype": "none", "font.size": 9}):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.4 * len(series), 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, len(series), squeeze=False, sharey=True)[0]
        for panel, (shape, kernels) in zip(panels, series.items()):
            densities = sorted({density for points in kernels.values() for density, _ in points})
            panel.plot(densities, [1 / d for d in densities], "--", color="gray", label="limit 1/density")
            for kernel, points in sorted(kernels.items()):
                panel.plot(*zip(*points), marker="o", markersize=4, label=kernel.removeprefix("sparse "))
            panel.set(xscale="log", yscale="log", title=shape, xlabel="density")
            panel.set_xticks(DENSITIES, [f"{density:g}" for density in DENSITIES])
            panel.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("speed-up over the fastest dense kernel")
        panels[0].legend(frameon=False, loc="lower left")
        image.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(image, format="svg", metadata={"Date": None})
