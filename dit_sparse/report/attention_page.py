"""The inspector's page: one file, maps and heat as packed bytes that the page unpacks when they are shown.

Mass is stored on a logarithmic scale in 8 bits, 3 % per level over three decades. Maps and grids that
are finer than a screen shows are averaged down. Maps share one scale, to be compared; heat has one per head,
because a sharp head would leave a diffuse one dark. The figures beside them are the exact ones.
"""

from __future__ import annotations

import base64
import io
import math
import zlib
from typing import Any

import torch
from torch import Tensor

from dit_sparse.embedded import NAME as EMBEDDED_MODEL
from dit_sparse.report.attention_inspection import HeadMaps, Inspection
from dit_sparse.report.attention_maps import text_blocks
from dit_sparse.report.attention_schema import Attention
from dit_sparse.report.metrics import Frames
from dit_sparse.report.templating import environment, flatten
from dit_sparse.report.video import to_uint8

DECADES = 3.0
"""Of mass that the colours tell apart, below the largest."""
MAP_LIMIT = 160
"""Blocks per side that the page shows; more are averaged."""
GRID_LIMIT = 64
"""Tokens per side of a frame that the page shows; more are averaged."""
FRAME_LIMIT = 320
"""Longer side of the page's frames, pixels."""


def render(attention: Attention, seen: Inspection) -> str:
    """The page as a string.

    Raises:
        MissingExtraError: without jinja2.
    """
    template = environment().get_template("attention.html.j2")
    return str(
        template.render(
            attention=attention,
            data=page_data(attention, seen),
            method=flatten(attention.method),
            generation=flatten(attention.generation),
            tiny=attention.model.name == EMBEDDED_MODEL,
        )
    )


def page_data(attention: Attention, seen: Inspection) -> dict[str, Any]:
    """All that the page's script needs, JSON values only."""
    blocks, frames = seen.heads[0].raster.shape[0], frame_of_token(seen)
    _, height, width = seen.layout.grid
    side = _side(max(height, width), GRID_LIMIT)
    mass = _scale(max(float(maps.raster.max()) for maps in seen.heads), seen)
    heats = [_scale(float(maps.points.max()), seen) for maps in seen.heads]
    return {
        "steps": attention.steps,
        "layers": attention.layers,
        "heads": attention.heads,
        "grid": list(seen.layout.grid),
        "shown": [math.ceil(height / side), math.ceil(width / side)],
        "side": side,
        "points": [list(point) for point in seen.points],
        "frames": frames,
        "film": _film(seen.frames[frames]) if seen.frames is not None else None,
        "blocks": blocks,
        "cells": math.ceil(blocks / _side(blocks, MAP_LIMIT)),
        "pool": _side(blocks, MAP_LIMIT),
        "block": seen.block_size[0],
        "text": text_blocks(seen.layout, seen.block_size[0], reordered=False),
        "textSorted": text_blocks(seen.layout, seen.block_size[0], reordered=True),
        "reordered": attention.reordered,
        "mass": mass,
        "numbers": [{**_numbers(maps), "heat": heat} for maps, heat in zip(seen.heads, heats)],
        "maps": [_packed(maps, mass, heat) for maps, heat in zip(seen.heads, heats)],
    }


def frame_of_token(seen: Inspection) -> list[int]:
    """The video frame that stands for every frame of tokens: evenly spread, first and last included.

    Causal autoencoders give the first frame a token of its own and every later group of four the next: this
    names the last frame of each group.
    """
    count = seen.layout.frames
    frames = 1 if seen.frames is None else len(seen.frames)
    return [round(t * (frames - 1) / max(1, count - 1)) for t in range(count)]


def _scale(top: float, seen: Inspection) -> dict[str, float]:
    """Logarithms of the darkest and the brightest mass."""
    high = math.log10(max(top, 1 / seen.layout.num_tokens))
    return {"low": high - DECADES, "high": high}


def _side(size: int, limit: int) -> int:
    """Cells to average along a side so that ``size`` cells become at most ``limit``."""
    return -(-size // limit)


def _numbers(maps: HeadMaps) -> dict[str, Any]:
    """Figures of a head, rounded to what the page shows."""
    figures = maps.figures.model_dump(exclude={"transformer"})
    return {**{key: _rounded(value) for key, value in figures.items()}, "sorted": maps.ordered is not None}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _packed(maps: HeadMaps, mass: dict[str, float], heat: dict[str, float]) -> str:
    """Raster map, map in the method's order, kept share, heat of all points: bytes, deflated, base64."""
    side = _side(len(maps.raster), MAP_LIMIT)
    points = _pooled(maps.points.flatten(0, 1), _side(max(maps.points.shape[-2:]), GRID_LIMIT))
    parts = [
        _levels(_pooled(maps.raster[None], side), mass),
        _levels(_pooled(maps.in_order[None], side), mass),
        (_pooled(maps.kept[None].float(), side) * 255).round(),
        _levels(points, heat),
    ]
    content = b"".join(part.to(torch.uint8).numpy().tobytes() for part in parts)
    return base64.b64encode(zlib.compress(content, 9)).decode("ascii")


def _pooled(x: Tensor, side: int) -> Tensor:
    """Means of ``side`` x ``side`` cells of ``[n, rows, columns]``; those at the edge may have fewer."""
    if side == 1:
        return x
    return torch.nn.functional.avg_pool2d(x[:, None], side, ceil_mode=True, count_include_pad=False).squeeze(
        1
    )


def _levels(x: Tensor, scale: dict[str, float]) -> Tensor:
    """Mass as 0..255 on a logarithmic scale; what lies below it is 0."""
    place = (x.clamp(min=1e-30).log10() - scale["low"]) / (scale["high"] - scale["low"])
    return (place.clamp(0, 1) * 255).round()


def _film(frames: Frames) -> dict[str, Any]:
    """Frames below one another in one picture, as a data address."""
    from PIL import Image

    _, height, width, _ = frames.shape
    shrink = min(1.0, FRAME_LIMIT / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    strip = Image.new("RGB", (size[0], size[1] * len(frames)))
    for i, frame in enumerate(frames):
        picture = Image.fromarray(to_uint8(frame)).resize(size, Image.Resampling.LANCZOS)
        strip.paste(picture, (0, i * size[1]))
    stream = io.BytesIO()
    strip.save(stream, "WEBP", quality=88, method=4)
    address = f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
    return {"source": address, "width": size[0], "height": size[1]}
