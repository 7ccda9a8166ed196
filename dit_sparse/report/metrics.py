"""Frame metrics on raw float frames: PSNR and SSIM per frame, then averaged.

Frames are float arrays ``[F, H, W, 3]`` in [0, 1] straight from the pipeline, never decoded from a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dit_sparse.report.extras import require

Frames = NDArray[np.floating]

# Wang et al. 2004, as scikit-image asks for: 11 x 11 Gaussian window, population covariance.
SSIM_SETTINGS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
SSIM_MIN_SIDE = 11
RANGE_SLACK = 1e-3
IDENTICAL_DB = 100.0
"""PSNR that an identical frame counts as where videos are averaged or ranked."""


def check_frames(reference: Frames, candidate: Frames) -> None:
    """Refuse what cannot be compared.

    Raises:
        ValueError: on different shapes, a shape other than ``[F, H, W, 3]``, NaN, or values outside [0, 1].
    """
    if reference.shape != candidate.shape:
        raise ValueError(
            f"cannot compare videos of different shapes: {reference.shape} and {candidate.shape}"
        )
    if reference.ndim != 4 or reference.shape[-1] != 3 or 0 in reference.shape:
        raise ValueError(f"frames must be [F, H, W, 3] with F, H, W >= 1, got {reference.shape}")
    for name, frames in (("reference", reference), ("candidate", candidate)):
        bad = np.flatnonzero(~np.isfinite(frames).all(axis=(1, 2, 3)))
        if bad.size:
            raise ValueError(f"the {name} video holds NaN or infinite values, first in frame {bad[0]}")
        if frames.min() < -RANGE_SLACK or frames.max() > 1 + RANGE_SLACK:
            raise ValueError(
                f"frames must lie in [0, 1], the {name} video spans {frames.min():.3g}..{frames.max():.3g}"
            )


def _in_float64(reference: Frames, candidate: Frames) -> Iterator[tuple[Frames, Frames]]:
    """Pairs of frames, one after the other: a 129-frame 720p video in float64 would be 2.9 GB.

    They lie in row-major order whatever order they came in: sums run through memory, and frames read from a
    file lie otherwise than those that a pipeline has just returned.
    """
    for a, b in zip(reference, candidate):
        yield a.astype(np.float64, order="C"), b.astype(np.float64, order="C")


def psnr_per_frame(reference: Frames, candidate: Frames) -> list[float]:
    """Peak signal-to-noise ratio of every frame in dB for a peak of 1; infinite for identical frames."""
    check_frames(reference, candidate)
    errors = (float(np.square(a - b).mean()) for a, b in _in_float64(reference, candidate))
    return [math.inf if error == 0.0 else -10.0 * math.log10(error) for error in errors]


def ssim_per_frame(reference: Frames, candidate: Frames) -> list[float]:
    """Structural similarity of every frame, in [-1, 1], with ``SSIM_SETTINGS``, mean over the colours.

    Raises:
        ValueError: as :func:`check_frames`, or when a side is shorter than the 11-pixel window.
    """
    check_frames(reference, candidate)
    if min(reference.shape[1:3]) < SSIM_MIN_SIDE:
        raise ValueError(f"SSIM needs frames of at least 11 x 11 pixels, got {reference.shape[1:3]}")
    structural_similarity = require("skimage.metrics").structural_similarity
    return [
        float(structural_similarity(a, b, channel_axis=-1, **SSIM_SETTINGS))
        for a, b in _in_float64(reference, candidate)
    ]


def capped_mean_psnr(values: Sequence[float | None]) -> float:
    """Mean over frames with ``IDENTICAL_DB`` as the largest value; None stands for an identical frame."""
    capped = [IDENTICAL_DB if value is None else min(value, IDENTICAL_DB) for value in values]
    return sum(capped) / len(capped)


def finite_mean(values: Sequence[float]) -> float | None:
    """Mean of the finite values; None when there is none (every frame identical)."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def amplified_difference(reference: Frames, candidate: Frames, gain: float) -> Frames:
    """Absolute difference times ``gain``, clipped to [0, 1], for looking at."""
    check_frames(reference, candidate)
    return np.clip(np.abs(reference - candidate) * gain, 0.0, 1.0)
