"""Videos that say which frame they show, so that a test can read it off the screen."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from report_samples import make_stats

from dit_sparse.report.generation import Run
from dit_sparse.report.pair import Pair

BITS = 6
HUES = {"dense": (1.0, 0.2, 0.2), "sparse": (0.2, 0.2, 1.0)}


def coded_video(panel: str, frames: int, height: int = 40, width: int = 48) -> np.ndarray:
    """Frame i shows the bits of i as lit or dark stripes, least significant left, in the panel's hue."""
    video = np.zeros((frames, height, width, 3), np.float32)
    for i in range(frames):
        for bit in range(BITS):
            if i >> bit & 1:
                video[i, :, bit * width // BITS : (bit + 1) * width // BITS] = HUES[panel]
    return video


def read_code(png: bytes) -> int:
    """The frame that a picture of a panel shows."""
    middle = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).max(axis=2)
    row = middle[middle.shape[0] // 2]
    centres = ((np.arange(BITS) + 0.5) * len(row) / BITS).astype(int)
    return int(sum(1 << bit for bit, x in enumerate(centres) if row[x] > 100))


def coded_pair(frames: int, height: int = 40, width: int = 48) -> Pair:
    """A dense and a sparse run whose videos count their frames."""
    times = {"end_to_end_s": 3.0, "denoise_s": 2.0, "transformer_s": 1.5, "step_s": (0.5, 0.5)}
    dense = Run(frames=coded_video("dense", frames, height, width), **times)
    sparse = Run(frames=coded_video("sparse", frames, height, width), stats=make_stats(), **times)
    return Pair(sparse, dense, {"method": "svg2"}, torch.device("cpu"), warmup=False)
