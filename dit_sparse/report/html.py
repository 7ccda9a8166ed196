"""Render ``report.html``: one page without external requests, readable from disk, in dark and light."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_sparse.embedded import NAME as EMBEDDED_MODEL
from dit_sparse.report.atomic import write_text
from dit_sparse.report.charts import Chart, line_chart
from dit_sparse.report.extras import require
from dit_sparse.report.schema import HeatMap, Report

TEMPLATES = Path(__file__).parent / "templates"
EMBED_LIMIT_BYTES = (
    8 * 1024 * 1024
)  # videos up to this size together go into the page, so that it is one file to share
MISSING = "\N{EN DASH}"
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
PLAIN_REASONS = {"dense_step": "dense step", "dense_layer": "dense layer", "min_tokens": "short sequence"}


def write_html(path: Path, report: Report) -> None:
    """Render the report beside its videos, atomically.

    Raises:
        MissingExtraError: without jinja2.
    """
    names = {role: getattr(report.files, role) for role in ("dense", "sparse", "difference")}
    present = {role: path.parent / name for role, name in names.items() if name}
    embed = sum(video.stat().st_size for video in present.values()) <= EMBED_LIMIT_BYTES
    sources = {role: _data_uri(video) if embed else video.name for role, video in present.items()}
    write_text(path, render(report, sources))


def render(report: Report, sources: Mapping[str, str]) -> str:
    """The page as a string; ``sources`` maps dense, sparse and difference to the video's address."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, percent=_percent, bytes=_bytes)
    return environment.get_template("report.html.j2").render(
        report=report,
        sources=sources,
        charts=[chart for chart in frame_charts(report) if chart],
        step_chart=step_chart(report),
        heat_top=heat_top(report.density.heat_maps),
        plain_reasons=PLAIN_REASONS,
        config=flatten(report.config),
        tiny=report.model.name == EMBEDDED_MODEL,
    )


def frame_charts(report: Report) -> list[Chart | None]:
    """PSNR, SSIM and LPIPS over the frames."""
    values = report.metrics.per_frame
    if values is None:
        return []
    return [
        line_chart(
            "PSNR", [("PSNR", "one", values.psnr)], unit="dB", hint="higher is closer", follows_player=True
        ),
        line_chart("SSIM", [("SSIM", "one", values.ssim)], hint="1 is identical", follows_player=True),
        line_chart(
            "LPIPS", [("LPIPS", "one", values.lpips or [])], hint="0 is identical", follows_player=True
        ),
    ]


def step_chart(report: Report) -> Chart | None:
    """Seconds per denoising step, dense and sparse."""
    lines: list[tuple[str, str, list[float]]] = []
    if report.time.dense is not None:
        lines.append(("dense", "two", report.time.dense.step_s))
    lines.append(("sparse", "one", report.time.sparse.step_s))
    return line_chart("Time per step", lines, unit="s", x_label="step", from_zero=True)


def heat_top(maps: list[HeatMap]) -> float:
    """Upper end of the heat map's colour scale: the largest sparse density, rounded up to a tenth."""
    sparse = [
        density
        for heat in maps
        for densities, reasons in zip(heat.density, heat.dense_reason)
        for density, reason in zip(densities, reasons)
        if density is not None and reason is None
    ]
    return min(1.0, -(-max(sparse) * 10 // 1) / 10) if sparse else 1.0


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _data_uri(video: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode("ascii")


def _number(value: float | None, decimals: int = 2) -> str:
    return MISSING if value is None else f"{value:.{decimals}f}"


def _percent(value: float | None, decimals: int = 1) -> str:
    return MISSING if value is None else f"{100 * value:.{decimals}f} %"


def _bytes(value: float | None) -> str:
    if value is None:
        return MISSING
    for unit in BYTE_UNITS:
        if value < 1024 or unit == BYTE_UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
