"""What other training-free sparse attention reports against dense: the scale on which a PSNR is read.

Figures are the papers' own, on large models at 480p to 768p, with their densities and dense guards. They say
what is usual, not what is good: a PSNR against dense is sameness, not quality.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dit_sparse.report.schema import Report

SCALE_TOP_DB = 50.0  # a float32 floor may lie beyond 100 dB; it is drawn at the edge


@dataclass(frozen=True)
class Band:
    """Lowest and highest mean that papers report on one model family, sparse against dense.

    Args:
        psnr, ssim, lpips: (low, high).
        sources: arXiv numbers.
    """

    family: str
    psnr: tuple[float, float]
    ssim: tuple[float, float]
    lpips: tuple[float, float]
    sources: tuple[str, ...]


BANDS = (
    # Low: VMoBA (1.3B) in PSNR, Sparse-vDiT in the others. High: DraftAttention at 55 % sparsity, SVG2.
    Band(
        "Wan 2.1",
        (18.8, 29.2),
        (0.80, 0.854),
        (0.138, 0.16),
        ("2505.18875", "2505.14708", "2506.16054", "2506.03065", "2506.23858", "2603.18636"),
    ),
    # Low: DraftAttention at 90 % sparsity, Sparse-vDiT. High: DraftAttention at 60 % sparsity.
    Band(
        "HunyuanVideo",
        (24.2, 32.1),
        (0.87, 0.932),
        (0.056, 0.148),
        ("2505.14708", "2505.18875", "2502.21079", "2506.03065", "2603.08982"),
    ),
    # Low: PAROAttention at 20 % density. High: PAROAttention at 50 %, Re-ttention in LPIPS.
    Band(
        "CogVideoX",
        (19.4, 29.1),
        (0.744, 0.936),
        (0.059, 0.14),
        ("2506.16054", "2505.22918", "2502.21079", "2506.03065"),
    ),
)


@dataclass(frozen=True)
class Mark:
    """A row of the scale: a point, or a range from ``left`` to ``right``, in percent of the width."""

    name: str
    style: str
    label: str
    left: float
    right: float
    beyond: bool = False


@dataclass(frozen=True)
class Scale:
    """PSNR on a line: ticks as (percent, label), and what is marked on it."""

    ticks: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...]


def psnr_scale(report: Report) -> Scale | None:
    """This run, its floor and the published ranges on one line; None without a dense run."""
    metrics, floor = report.metrics, report.metrics.floor
    if metrics.identical is None:
        return None
    points = [("this run", "one", metrics.psnr)]
    if floor is not None:
        points.append(("dense against dense", "two", floor.psnr))
    values = [value for _, _, value in points if value is not None]
    low = 5 * math.floor(min([*values, *(band.psnr[0] for band in BANDS)]) / 5)

    def at(value: float) -> float:
        return round(100 * (min(value, SCALE_TOP_DB) - low) / (SCALE_TOP_DB - low), 2)

    marks = [_point(name, style, value, at) for name, style, value in points]
    marks += [
        Mark(
            band.family,
            "band",
            f"{band.psnr[0]:g} to {band.psnr[1]:g} dB",
            at(band.psnr[0]),
            at(band.psnr[1]),
        )
        for band in BANDS
    ]
    step = 5 if SCALE_TOP_DB - low <= 40 else 10
    ticks = tuple((at(tick), f"{tick:g}") for tick in range(low, int(SCALE_TOP_DB) + 1, step))
    return Scale(ticks, tuple(marks))


def _point(name: str, style: str, value: float | None, at: Callable[[float], float]) -> Mark:
    if value is None:
        return Mark(name, style, "identical", 100.0, 100.0, beyond=True)
    return Mark(name, style, f"{value:.2f} dB", at(value), at(value), beyond=value > SCALE_TOP_DB)
