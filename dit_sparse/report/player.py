"""The file behind the page's player: every panel of a frame in one picture, so that panels stay together.

Three video elements are never on the same frame at the same moment; one stack that is cut up when it is
drawn always is. Short clips become a lossless WebP sheet of all frames: exact pixels, no decoder, no seeking.
Longer ones become an H.264 stack with frequent key frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_sparse.report.atomic import atomic_path
from dit_sparse.report.metrics import Frames
from dit_sparse.report.video import check_panels, encode, to_uint8

EMBED_LIMIT_BYTES = 8 * 1024 * 1024  # up to this size the page carries the file: one file to share
SHEET_LIMIT_PIXELS = 2**24  # 64 MiB once a browser has decoded it
SHEET, STACK = "player.webp", "player.mp4"


@dataclass(frozen=True)
class Geometry:
    """Where the panels of a frame are, in pixels.

    Args:
        width, height: of one panel as it is shown.
        step: (x, y) from one panel to the next.
        cell: (width, height) of a frame with all its panels.
        columns: frames per row of a sheet; 1 for a video, which holds one frame at a time.
    """

    width: int
    height: int
    step: tuple[int, int]
    cell: tuple[int, int]
    columns: int = 1


def geometry(name: str, frames: int, height: int, width: int, panels: int) -> Geometry:
    """The layout of a player file; panels are stacked along the shorter side of the video.

    Args:
        name: of the file: ``SHEET``, or ``STACK`` whose panels have even sides.
    """
    even = name == STACK
    tall, wide = (height + height % 2, width + width % 2) if even else (height, width)
    step = (0, tall) if height <= width else (wide, 0)
    cell = (wide + step[0] * (panels - 1), tall + step[1] * (panels - 1))
    near_square = round(math.sqrt(frames * cell[1] / cell[0]))
    return Geometry(width, height, step, cell, 1 if even else min(max(near_square, 1), frames))


def write_player(output: Path, panels: Mapping[str, Frames], fps: float) -> str:
    """Write the sheet or, where it would be too large, the stack; return the file's name.

    Args:
        panels: float ``[F, H, W, 3]`` in [0, 1] by name, in the order in which they are stacked.

    Raises:
        ValueError: without panels, on different shapes, or on what is not a video.
    """
    frames, height, width, _ = check_panels(panels)
    if len(panels) * frames * height * width <= SHEET_LIMIT_PIXELS:
        size = _write_sheet(output / SHEET, panels, geometry(SHEET, frames, height, width, len(panels)))
        if size <= EMBED_LIMIT_BYTES:
            return SHEET
        (output / SHEET).unlink()
    layout = geometry(STACK, frames, height, width, len(panels))
    stacks = (_stacked(layout, images) for images in zip(*panels.values()))
    encode(output / STACK, stacks, fps)
    return STACK


def _stacked(layout: Geometry, images: tuple[Any, ...]) -> NDArray[np.uint8]:
    """One frame of every panel, uint8, as a cell; padding repeats the edge, as encoders like it."""
    cell = np.zeros((layout.cell[1], layout.cell[0], 3), np.uint8)
    tall, wide = (layout.step[1] or layout.cell[1]), (layout.step[0] or layout.cell[0])
    padding = ((0, tall - layout.height), (0, wide - layout.width), (0, 0))
    for i, image in enumerate(images):
        x, y = i * layout.step[0], i * layout.step[1]
        cell[y : y + tall, x : x + wide] = np.pad(to_uint8(image), padding, mode="edge")
    return cell


def _write_sheet(path: Path, panels: Mapping[str, Frames], layout: Geometry) -> int:
    """Write all frames into one lossless picture; return its bytes."""
    from PIL import Image

    count = len(next(iter(panels.values())))
    rows = math.ceil(count / layout.columns)
    wide, tall = layout.cell
    sheet = np.zeros((rows * tall, layout.columns * wide, 3), np.uint8)
    for i, images in enumerate(zip(*panels.values())):
        row, column = divmod(i, layout.columns)
        sheet[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide] = _stacked(layout, images)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet).save(temporary, "WEBP", lossless=True, method=4)
    return path.stat().st_size
