"""The closing table of ``generate``."""

from __future__ import annotations

from rich.table import Table

from dit_sparse.report.schema import Report


def result_table(report: Report) -> Table:
    """Times, density, metrics, backend and fallbacks of one report."""
    table = Table(
        show_header=False,
        title=f"{report.config.get('method', 'sparse')} on {report.model.name}",
        title_justify="left",
    )
    table.add_column(style="dim")
    table.add_column()
    time, metrics, density = report.time, report.metrics, report.density
    if time.dense_s is not None:
        table.add_row("time dense", f"{time.dense_s:.2f} s denoising")
    table.add_row("time sparse", f"{time.sparse_s:.2f} s denoising")
    if time.speedup is not None:
        table.add_row(
            "speed-up", f"{time.speedup:.2f} x denoising, {time.speedup_end_to_end:.2f} x end to end"
        )
    if time.speedup_attention is not None:
        table.add_row("", f"{time.speedup_attention:.2f} x self-attention, planning included")
    if density.total is not None:
        table.add_row(
            "density", f"{density.total:.1%} with the dense guard, {_percent(density.sparse_sites)} without"
        )
    if density.recall is not None:
        table.add_row("recall", f"{density.recall.mean:.1%} of the softmax lies in the kept blocks")
    if metrics.ssim is not None:
        table.add_row("PSNR", _decibels(metrics.psnr))
        if metrics.floor is not None:
            table.add_row("floor", f"{_decibels(metrics.floor.psnr)} dense against dense")
        table.add_row("SSIM", f"{metrics.ssim:.4f}")
        table.add_row(
            "LPIPS", f"{metrics.lpips:.4f}" if metrics.lpips is not None else metrics.lpips_unavailable or "-"
        )
    table.add_row("backend", report.backend)
    table.add_row("fallbacks", "\n".join(report.fallbacks) or "none")
    return table


def _decibels(value: float | None) -> str:
    return "identical" if value is None else f"{value:.2f} dB"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
