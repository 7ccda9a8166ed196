"""Render ``report.html``: one page without external requests, readable from disk, in dark and light."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from dit_sparse.embedded import NAME as EMBEDDED_MODEL
from dit_sparse.report.atomic import write_text
from dit_sparse.report.bands import BANDS, psnr_scale
from dit_sparse.report.breakdown import breakdown, stages
from dit_sparse.report.charts import Chart, Values, line_chart
from dit_sparse.report.grids import (
    PLAIN_REASONS,
    choice_grids,
    density_by_head,
    density_by_step,
    density_top,
    recall_bottom,
    recall_grids,
)
from dit_sparse.report.player import EMBED_LIMIT_BYTES, STACK, geometry
from dit_sparse.report.schema import Report
from dit_sparse.report.steps import step_charts
from dit_sparse.report.templating import environment, flatten

MEDIA_TYPES = {".webp": "image/webp", ".mp4": "video/mp4"}


def write_html(path: Path, report: Report) -> None:
    """Render the report beside its files, atomically.

    Raises:
        MissingExtraError: without jinja2.
    """
    write_text(path, render(report, player_media(path.parent, report)))


def render(report: Report, media: dict[str, Any] | None) -> str:
    """The page as a string; ``media`` comes from :func:`player_media`."""
    density, recall = report.density, report.density.recall
    top = density_top(density.heat_maps, density.head_maps)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            media=media,
            charts=frame_charts(report),
            step_charts=step_charts(report.time),
            breakdown=breakdown(report.time),
            stages=stages(report.time.sparse),
            scale=psnr_scale(report),
            bands=BANDS,
            heat_top=top,
            density_grids=[density_by_step(made, top) for made in density.heat_maps]
            + [density_by_head(made, top) for made in density.head_maps],
            recall_grids=recall_grids(recall) if recall else [],
            recall_bottom=recall_bottom(recall) if recall else None,
            choices=[(made.names, choice_grids(made)) for made in density.choices],
            plain_reasons=PLAIN_REASONS,
            config=flatten(report.config),
            tiny=report.model.name == EMBEDDED_MODEL,
        )
    )


def player_media(folder: Path, report: Report) -> dict[str, Any] | None:
    """What the page's player needs to know; None without a player file.

    A small file is carried by the page as a data address. A large one stays a neighbour that the page names
    without a folder, so that the two can be moved together.
    """
    name = report.files.player
    if name is None:
        return None
    panels = [role for role in ("dense", "sparse", "difference") if getattr(report.files, role) is not None]
    video, file = report.video, folder / name
    layout = geometry(name, video.frames, video.height, video.width, len(panels))
    embedded = file.stat().st_size <= EMBED_LIMIT_BYTES
    return {
        "kind": "video" if name == STACK else "sheet",
        "source": _data_address(file) if embedded else name,
        "file": name,
        "frames": video.frames,
        "fps": video.fps,
        "width": layout.width,
        "height": layout.height,
        "step": layout.step,
        "cell": layout.cell,
        "columns": layout.columns,
        "panels": panels,
    }


def frame_charts(report: Report) -> list[Chart]:
    """PSNR, SSIM, LPIPS and flicker over the frames."""
    values = report.metrics.per_frame
    if values is None:
        return []
    dense, sparse = values.flicker_dense or [], values.flicker_sparse or []
    lines: list[tuple[str, list[tuple[str, str, Values]], str, str]] = [
        ("PSNR", [("PSNR", "one", values.psnr)], "dB", "higher is closer"),
        ("SSIM", [("SSIM", "one", values.ssim)], "", "1 is identical"),
        ("LPIPS", [("LPIPS", "one", values.lpips or [])], "", "0 is identical"),
        ("Flicker", [("dense", "two", dense), ("sparse", "one", sparse)], "levels", ""),
    ]
    charts = [
        line_chart(name, of, unit=unit, hint=hint, follows_player=True) for name, of, unit, hint in lines
    ]
    return [chart for chart in charts if chart is not None]


def _data_address(file: Path) -> str:
    content = base64.b64encode(file.read_bytes()).decode("ascii")
    return f"data:{MEDIA_TYPES[file.suffix]};base64,{content}"
