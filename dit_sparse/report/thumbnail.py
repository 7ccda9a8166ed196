"""One small picture of a video, for tables."""

from __future__ import annotations

from pathlib import Path

from dit_sparse.report.metrics import Frames
from dit_sparse.report.video import check_video, to_uint8

LONG_SIDE = 320  # pixels; shown at about half of that, so that it is sharp on dense screens


def write_thumbnail(path: Path, frames: Frames) -> None:
    """The middle frame as WebP, at most ``LONG_SIDE`` pixels long; never enlarged.

    Raises:
        ValueError: on what is not a video.
    """
    from PIL import Image

    check_video(frames)
    image = Image.fromarray(to_uint8(frames[len(frames) // 2]))
    image.thumbnail((LONG_SIDE, LONG_SIDE))
    image.save(path, "WEBP", quality=85)
