"""Temporal flicker of one video: how much its frames swing back and forth, without a reference.

VBench (Huang et al. 2024, arXiv 2311.17982) calls the mean absolute difference of neighbouring frames
"temporal flickering", on still scenes. On moving ones that difference is mostly motion. Here it is the second
difference, which is zero for a steady fade and doubles for a value that alternates. No optical flow is
estimated, so nothing depends on a flow network; moving edges still count, alike in dense and sparse: compare
the two, not one with another scene.
"""

from __future__ import annotations

import numpy as np

from dit_sparse.report.metrics import Frames

GREY_LEVELS = 255.0


def flicker_per_frame(frames: Frames) -> list[float | None]:
    """Mean of |f[t-1] - 2 f[t] + f[t+1]| over pixels and colours, in grey levels of 255.

    Args:
        frames: float ``[F, H, W, 3]`` in [0, 1].

    Returns:
        One value per frame; None for the first and the last, which lack a neighbour.
    """
    frames = np.ascontiguousarray(frames)  # sums run through memory: its order must not show
    inner = range(1, len(frames) - 1)
    values = [
        GREY_LEVELS * float(np.abs(frames[t - 1] - 2 * frames[t] + frames[t + 1]).mean(dtype=np.float64))
        for t in inner
    ]
    return [None, *values, None] if values else [None] * len(frames)
