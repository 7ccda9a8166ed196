"""Contact sheets: one row per clip, its caption printed above, frames from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

_LINE = 14
MAX_BYTES = 3_000_000


def contact_sheet(
    clips: Sequence[Tensor], captions: Sequence[str], path: Path, columns: int = 8, side: int = 128
) -> None:
    """Write a picture of `clips` (each [3, T, H, W] in [-1, 1]) with `columns` evenly spaced frames a row."""
    row_height = side + _LINE + 2
    sheet = Image.new("RGB", (columns * (side + 2), row_height * len(clips)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        draw.text((2, row * row_height + 1), caption, fill="black")
        for column, frame in enumerate(torch.linspace(0, clip.shape[1] - 1, columns).round().long().tolist()):
            pixels = ((clip[:, frame].float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu()
            picture = Image.fromarray(np.asarray(pixels))
            if picture.width != side:
                picture = picture.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * (side + 2), row * row_height + _LINE))
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in (88, 75, 60, 40):
        sheet.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            break
