"""All frame metrics of a dense and a sparse video, as the report's metrics section."""

from __future__ import annotations

import math
from pathlib import Path

from dit_sparse.report.lpips import NETWORK, lpips_per_frame
from dit_sparse.report.lpips_weights import LpipsUnavailableError
from dit_sparse.report.metrics import SSIM_SETTINGS, Frames, finite_mean, psnr_per_frame, ssim_per_frame
from dit_sparse.report.schema import Metrics, PerFrame
from dit_sparse.report.temporal import flicker_per_frame


def compare_frames(dense: Frames, sparse: Frames, lpips_weights: Path | None = None) -> Metrics:
    """PSNR, SSIM, flicker and, where its weights can be had, LPIPS of ``sparse`` against ``dense``.

    Raises:
        ValueError: on different shapes, NaN, frames outside [0, 1] or smaller than SSIM's window.
    """
    psnr = psnr_per_frame(dense, sparse)
    ssim = ssim_per_frame(dense, sparse)
    lpips, unavailable = _lpips(dense, sparse, lpips_weights)
    flicker_dense, flicker_sparse = flicker_per_frame(dense), flicker_per_frame(sparse)
    identical = sum(math.isinf(value) for value in psnr)
    return Metrics(
        psnr=finite_mean(psnr),
        ssim=finite_mean(ssim),
        lpips=finite_mean(lpips) if lpips else None,
        identical=identical == len(psnr),
        identical_frames=identical,
        ssim_settings=dict(SSIM_SETTINGS),
        lpips_network=NETWORK if lpips else None,
        lpips_unavailable=unavailable,
        flicker_dense=_mean(flicker_dense),
        flicker_sparse=_mean(flicker_sparse),
        per_frame=PerFrame(
            psnr=[None if math.isinf(v) else v for v in psnr],
            ssim=ssim,
            lpips=lpips,
            flicker_dense=flicker_dense,
            flicker_sparse=flicker_sparse,
        ),
    )


def _mean(values: list[float | None]) -> float | None:
    return finite_mean([value for value in values if value is not None])


def _lpips(dense: Frames, sparse: Frames, weights: Path | None) -> tuple[list[float] | None, str | None]:
    """Values or the reason why there are none; a missing metric never stops a report."""
    try:
        return lpips_per_frame(dense, sparse, weights), None
    except LpipsUnavailableError as error:
        return None, str(error)
