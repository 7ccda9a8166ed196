"""Write frames as H.264 mp4 files that play in every browser, through PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_sparse.report.atomic import atomic_path
from dit_sparse.report.extras import require
from dit_sparse.report.metrics import Frames

Pixels = NDArray[np.uint8]

CODEC = "libx264"
CRF = "12"  # visually lossless; metrics never come from these files
BT709 = 1  # the code of BT.709 in H.264's colour tables: primaries, transfer and matrix alike
LABEL_MIN_SIDE = 256  # panels are enlarged by whole factors up to this side, so that labels can be read


def check_video(frames: Frames) -> tuple[int, int, int, int]:
    """The shape of a video.

    Raises:
        ValueError: unless it is ``[F, H, W, 3]``, not empty, and all values are finite.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be [F, H, W, 3] with F, H, W >= 1, got {frames.shape}")
    if not all(np.isfinite(image).all() for image in frames):
        raise ValueError("the video holds NaN or infinite values")
    return frames.shape  # type: ignore[return-value]


def check_panels(panels: Mapping[str, Frames]) -> tuple[int, int, int, int]:
    """The shape that all panels share.

    Raises:
        ValueError: without panels, when their shapes differ, or as :func:`check_video`.
    """
    shapes = {check_video(frames) for frames in panels.values()}
    if len(shapes) != 1:
        raise ValueError(f"side by side needs videos of one shape, got {sorted(shapes)}")
    return shapes.pop()


def to_uint8(image: Frames) -> Pixels:
    """Floats in [0, 1] as rounded uint8, clipped."""
    return (np.clip(image, 0.0, 1.0) * 255.0).round().astype(np.uint8)


def encode(path: Path, images: Iterable[Pixels], fps: float) -> None:
    """Encode uint8 images ``[H, W, 3]`` as H.264, yuv420p, BT.709, moov atom first, as they come.

    B-frames are off and key frames frequent, so that a player can step and scrub frame by frame. Odd sides
    are padded by one pixel. The file appears only when it is whole.

    Raises:
        ValueError: on a rate that is not positive.
        MissingExtraError: without PyAV.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    av = require("av")
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream(CODEC, rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": CRF, "preset": "medium", "bf": "0", "g": "8"}
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        for i, image in enumerate(images):
            pixels = np.ascontiguousarray(_even(image))
            if i == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.color_primaries = frame.color_trc = BT709
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_video(path: Path, frames: Frames, fps: float) -> None:
    """Encode a video as :func:`encode` does.

    Args:
        path: target, ending in ``.mp4``.
        frames: float ``[F, H, W, 3]`` in [0, 1]; odd sides are padded by one pixel.
        fps: frames per second, > 0.

    Raises:
        ValueError: on frames that are not a video or a rate that is not positive.
        MissingExtraError: without PyAV.
    """
    check_video(frames)
    encode(path, map(to_uint8, frames), fps)


def write_side_by_side(path: Path, panels: Mapping[str, Frames], fps: float) -> None:
    """Encode videos of equal shape next to each other, each under its label.

    Small videos are enlarged by a whole factor without smoothing, so that pixels stay pixels.

    Raises:
        ValueError: without panels, or when their shapes differ.
    """
    _, height, width, _ = check_panels(panels)
    factor = max(1, LABEL_MIN_SIDE // max(height, width))
    labels = np.concatenate([_label(name, width * factor) for name in panels], axis=1)

    def joined(images: tuple[Frames, ...]) -> Pixels:
        row = np.concatenate([to_uint8(image) for image in images], axis=1)
        return np.concatenate([labels, row.repeat(factor, axis=0).repeat(factor, axis=1)])

    encode(path, map(joined, zip(*panels.values())), fps)


def _even(image: Pixels) -> Pixels:
    """Repeat the last row or column where a side is odd: yuv420p needs even sides."""
    height, width, _ = image.shape
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _label(text: str, width: int) -> Pixels:
    """A strip that names a panel."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(11, min(28, width // 18))
    strip = Image.new("RGB", (width, size * 2), (18, 20, 24))
    font: Any = ImageFont.load_default(size=size)
    ImageDraw.Draw(strip).text((width / 2, size), text, fill=(240, 242, 245), font=font, anchor="mm")
    return np.asarray(strip)
