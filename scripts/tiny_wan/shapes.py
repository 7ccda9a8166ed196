"""Signed distance functions of the shapes, tabulated once and sampled like a texture.

One lookup per object then serves a batch in which every clip shows another shape. Along straight edges
bilinear interpolation of a distance is exact; at corners the table's pitch, 3.2 / 256 of the radius, is below
a pixel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .scenes import SHAPES

EXTENT = 1.6  # the table covers [-EXTENT, EXTENT] in units of the object's radius
RESOLUTION = 256


def shape_atlas(device: torch.device | str) -> Tensor:
    """Distances [8, RESOLUTION, RESOLUTION], negative inside, in units of the radius; y points down."""
    axis = (torch.arange(RESOLUTION, dtype=torch.float64) + 0.5) / RESOLUTION * 2 * EXTENT - EXTENT
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius = torch.hypot(x, y)
    tables = {
        "circle": radius - 0.95,
        "square": _polygon(x, y, _regular(4, 1.17, 45.0)),
        "triangle": _polygon(x, y, [(px, py + 0.17) for px, py in _regular(3, 1.22, -90.0)]),
        "star": _polygon(x, y, _star(1.22, 0.50)),
        "ring": (radius - 0.76).abs() - 0.25,
        "cross": _polygon(x, y, _cross(1.02, 0.34)),
        "heart": _polygon(x, y, _heart()),
        "moon": torch.maximum(torch.hypot(x - 0.15, y) - 1.05, 0.85 - torch.hypot(x - 0.63, y)),
    }
    return torch.stack([tables[name] for name in SHAPES]).float().to(device)


Vertices = list[tuple[float, float]]


def _regular(sides: int, radius: float, first_degrees: float) -> Vertices:
    angles = [math.radians(first_degrees + 360.0 * i / sides) for i in range(sides)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star(outer: float, inner: float) -> Vertices:
    tips, notches = _regular(5, outer, -90.0), _regular(5, inner, -54.0)
    return [vertex for pair in zip(tips, notches, strict=True) for vertex in pair]


def _cross(length: float, half_width: float) -> Vertices:
    a, b = length, half_width
    return [
        (-b, -a),
        (b, -a),
        (b, -b),
        (a, -b),
        (a, b),
        (b, b),
        (b, a),
        (-b, a),
        (-b, b),
        (-a, b),
        (-a, -b),
        (-b, -b),
    ]


def _heart() -> Vertices:
    angles = [2 * math.pi * i / 96 for i in range(96)]
    return [
        (
            16 * math.sin(t) ** 3 / 15.5,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2) / 15.5,
        )
        for t in angles
    ]


def _polygon(x: Tensor, y: Tensor, vertices: Vertices) -> Tensor:
    """Exact signed distance to a simple polygon: nearest edge, sign by even-odd crossing."""
    distance = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        t = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        distance = torch.minimum(distance, torch.hypot(px - t * ex, py - t * ey))
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
    return torch.where(inside, -distance, distance)
