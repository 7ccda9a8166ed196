"""Write frames as H.264 mp4 files that play in every browser, through PyAV."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_sparse.report.atomic import atomic_path
from dit_sparse.report.extras import require
from dit_sparse.report.metrics import Frames

CODEC = "libx264"
CRF = "12"  # visually lossless; metrics never come from these files
BT709 = 1  # the code of BT.709 in H.264's colour tables: primaries, transfer and matrix alike
LABEL_MIN_SIDE = 256  # panels are enlarged by whole factors up to this side, so that labels can be read


def to_uint8(frames: Frames) -> NDArray[np.uint8]:
    """Float frames in [0, 1] as rounded uint8.

    Raises:
        ValueError: unless the shape is ``[F, H, W, 3]``, not empty, and all values are finite.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be [F, H, W, 3] with F, H, W >= 1, got {frames.shape}")
    if not np.isfinite(frames).all():
        raise ValueError("the video holds NaN or infinite values")
    return (np.clip(frames, 0.0, 1.0) * 255.0).round().astype(np.uint8)


def pad_to_even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row or column where a side is odd: yuv420p needs even sides."""
    _, height, width, _ = frames.shape
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def write_video(path: Path, frames: Frames, fps: float) -> None:
    """Encode ``frames`` as H.264, yuv420p, BT.709, moov atom first; the file appears only when it is whole.

    B-frames are off and key frames frequent, so that a player can step and scrub frame by frame.

    Args:
        path: target, ending in ``.mp4``.
        frames: float ``[F, H, W, 3]`` in [0, 1]; odd sides are padded by one pixel.
        fps: frames per second, > 0.

    Raises:
        ValueError: on frames that are not a video or a rate that is not positive.
        MissingExtraError: without PyAV.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    pixels = pad_to_even(to_uint8(frames))
    av = require("av")
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream(CODEC, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": CRF, "preset": "medium", "bf": "0", "g": "8"}
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        for image in pixels:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.color_primaries = frame.color_trc = BT709
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_side_by_side(path: Path, panels: Mapping[str, Frames], fps: float) -> None:
    """Encode videos of equal shape next to each other, each under its label.

    Small videos are enlarged by a whole factor without smoothing, so that pixels stay pixels.

    Raises:
        ValueError: without panels, or when their shapes differ.
    """
    shapes = {frames.shape for frames in panels.values()}
    if len(shapes) != 1:
        raise ValueError(f"side by side needs videos of one shape, got {sorted(shapes)}")
    (_, height, width, _) = shapes.pop()
    factor = max(1, LABEL_MIN_SIDE // max(height, width))
    columns = [
        _labelled(frames.repeat(factor, axis=1).repeat(factor, axis=2), label)
        for label, frames in panels.items()
    ]
    write_video(path, np.concatenate(columns, axis=2), fps)


def _labelled(frames: Frames, label: str) -> Frames:
    """Put a strip with ``label`` above the frames."""
    from PIL import Image, ImageDraw, ImageFont

    width = frames.shape[2]
    size = max(11, min(28, width // 18))
    strip = Image.new("RGB", (width, size * 2), (18, 20, 24))
    font: Any = ImageFont.load_default(size=size)
    ImageDraw.Draw(strip).text((width / 2, size), label, fill=(240, 242, 245), font=font, anchor="mm")
    banner = np.asarray(strip, dtype=frames.dtype) / 255
    return np.concatenate([np.broadcast_to(banner, (len(frames), *banner.shape)), frames], axis=1)
