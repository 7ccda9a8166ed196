"""Draws scenes: batched, on any device, with anti-aliased edges."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .motion import Paths, plan_paths
from .scenes import BACKGROUNDS, MAX_OBJECTS, TEXTURES, Scenes
from .shapes import EXTENT, shape_atlas

# Last entry: "white" as an object, "gray" as a background (backgrounds are drawn darker).
_RGB = (
    (0.92, 0.13, 0.13),
    (0.16, 0.72, 0.22),
    (0.14, 0.30, 0.95),
    (0.98, 0.88, 0.12),
    (0.62, 0.18, 0.84),
    (1.00, 0.52, 0.06),
    (0.10, 0.85, 0.92),
    (0.97, 0.97, 0.97),
)
_LIGHT, _DARK, _PLAIN = 0.66, 0.38, 0.54  # brightness of the background's tones
_INK = 0.52  # brightness of stripes and dots on an object
_RIM = 0.13  # plain border around a textured object, in radii: keeps its outline readable
_EDGE = 1.3  # width of an anti-aliased edge in pixels

_shape_atlas = lru_cache(maxsize=4)(shape_atlas)


def render(
    scenes: Scenes,
    num_frames: int,
    size: int,
    device: torch.device | str = "cpu",
    times: Tensor | None = None,
    crop: int | None = None,
) -> Tensor:
    """Draw clips [B, 3, T, size, size] in [-1, 1], float32, on `device`.

    Args:
        scenes: on the CPU, so that finding out which of them have a second object waits for no GPU.
        num_frames: length of the clip; positions follow from it.
        size: side of the square frame in pixels.
        times: frame numbers to draw [T]; all frames if None.
        crop: draw only a window of this side in pixels, at a place that the scene's jitter gives.
    """
    present = [(scenes.column("count") >= i).nonzero()[:, 0].to(device) for i in range(MAX_OBJECTS)]
    scenes = scenes.to(device)
    if times is None:
        times = torch.arange(num_frames, device=device)
    paths = plan_paths(scenes, times.float(), num_frames)
    x, y = _pixel_grid(scenes, size, crop)  # [B, 1, 1, W], [B, 1, H, 1]
    zoom = paths.zoom[..., None, None]
    world_x = (x - 0.5) / zoom + 0.5 + paths.pan[..., 0, None, None]  # [B, T, 1, W]
    world_y = (y - 0.5) / zoom + 0.5 + paths.pan[..., 1, None, None]  # [B, T, H, 1]
    edge = _EDGE / size / zoom  # [B, T, 1, 1], in world units

    palette = torch.tensor(_RGB, device=device)
    tone = _background_tone(scenes, world_x, world_y, edge)
    brightness = 0.96 + 0.08 * scenes.jitter[:, 17]
    base = palette[scenes.column("background_color")] * brightness[:, None]
    image = base[:, :, None, None, None] * tone[:, None]
    for i in reversed(range(MAX_OBJECTS)):  # the main object is drawn last, in front
        image = _draw_object(image, scenes, paths, i, present[i], world_x, world_y, edge, palette)
    return image.mul_(2).sub_(1)


def _pixel_grid(scenes: Scenes, size: int, crop: int | None) -> tuple[Tensor, Tensor]:
    side = size if crop is None else crop
    pixels = (torch.arange(side, device=scenes.jitter.device) + 0.5) / size
    origin = (scenes.jitter[:, 22:24] * (size - side)).floor() / size
    return pixels + origin[:, 0, None, None, None], pixels[:, None] + origin[:, 1, None, None, None]


def _wave(position: Tensor, period: Tensor | float, edge: Tensor) -> Tensor:
    """A square wave in [-1, 1] with anti-aliased edges; both half-waves are period / 2 long."""
    phase = (position / period) % 1.0
    distance = (0.25 - (phase - 0.5).abs()) * period
    return (2 * distance / edge).clamp(-1, 1)


def _dots(x: Tensor, y: Tensor, period: Tensor | float, radius: float, edge: Tensor) -> Tensor:
    """Coverage in [0, 1] of discs of `radius` periods on a square lattice."""
    dx, dy = (x / period) % 1.0 - 0.5, (y / period) % 1.0 - 0.5
    return (0.5 + (radius - torch.sqrt(dx * dx + dy * dy)) * period / edge).clamp(0, 1)


def _background_tone(scenes: Scenes, x: Tensor, y: Tensor, edge: Tensor) -> Tensor:
    """Brightness of the background, [B, T, H, W]."""
    j = scenes.jitter[:, 18:22, None, None, None]
    period = 0.26 + 0.10 * j[:, 0]
    x, y = x + j[:, 1], y + j[:, 2]
    slope = torch.where(j[:, 3] < 0.5, 0.0, 1.0)  # vertical or diagonal stripes
    slanted = (x + slope * y) / torch.sqrt(1 + slope * slope)
    direction = 2 * torch.pi * j[:, 3]
    ramp = 0.5 + 0.62 * (
        torch.cos(direction) * (x - j[:, 1] - 0.5) + torch.sin(direction) * (y - j[:, 2] - 0.5)
    )
    kinds = {
        "plain": torch.full_like(ramp, (_PLAIN - _DARK) / (_LIGHT - _DARK)),
        "gradient": ramp.clamp(-0.3, 1.3),
        "checkerboard": 0.5 + 0.5 * _wave(x, period, edge) * _wave(y, period, edge),
        "stripes": 0.5 + 0.5 * _wave(slanted, period, edge),
        "dots": _dots(x, y, 0.75 * period, 0.30, edge),
        "clouds": _clouds(scenes, x, y),
    }
    level = torch.zeros_like(ramp)
    kind = scenes.column("background")[:, None, None, None]
    for index, name in enumerate(BACKGROUNDS):
        level = torch.where(kind == index, kinds[name], level)
    return _DARK + (_LIGHT - _DARK) * level


def _clouds(scenes: Scenes, x: Tensor, y: Tensor) -> Tensor:
    """Soft noise in [0, 1]: four plane waves per scene with frequencies and phases from its jitter."""
    noise = scenes.jitter
    total = torch.zeros(1, device=noise.device)
    for wave in range(4):
        a, b, c = (noise[:, (5 * wave + k) % noise.shape[1], None, None, None] for k in (0, 7, 11))
        angle = torch.pi * (wave / 4 + 0.25 * a)
        frequency = 2 * torch.pi * (1.6 + 1.2 * b)
        total = total + torch.sin(
            frequency * (torch.cos(angle) * x + torch.sin(angle) * y) + 2 * torch.pi * c
        )
    return (0.5 + 0.26 * total).clamp(0, 1)


def _draw_object(
    image: Tensor,
    scenes: Scenes,
    paths: Paths,
    i: int,
    present: Tensor,
    x: Tensor,
    y: Tensor,
    edge: Tensor,
    palette: Tensor,
) -> Tensor:
    """Blend object `i` of the scenes that have it, numbers `present`, over `image` [B, 3, T, H, W]."""
    if len(present) == 0:
        return image
    scenes, x, y, edge = scenes[present], x[present], y[present], edge[present]
    center, radius, angle = (value[present, i] for value in (paths.center, paths.radius, paths.angle))
    radius, angle = radius[..., None, None], angle[..., None, None]  # [B, T, 1, 1]
    dx = (x - center[..., 0, None, None]) / radius
    dy = (y - center[..., 1, None, None]) / radius
    u = torch.cos(angle) * dx + torch.sin(angle) * dy  # [B, T, H, W], object coordinates
    v = torch.cos(angle) * dy - torch.sin(angle) * dx

    frames, height, width = u.shape[1:]
    grid = torch.stack([u, v], dim=-1).div_(EXTENT).view(len(present), frames * height, width, 2)
    table = _shape_atlas(image.device)[scenes.objects("shape")[:, i]][:, None]
    distance = F.grid_sample(table, grid, padding_mode="border", align_corners=False).view_as(u)
    cover = (0.5 - distance * radius / edge).clamp(0, 1)

    texture = scenes.objects("texture")[:, i, None, None, None]
    local_edge = edge / radius
    ink = torch.where(texture == TEXTURES.index("striped"), 0.5 + 0.5 * _wave(u + v, 0.85, local_edge), 0.0)
    ink = torch.where(texture == TEXTURES.index("dotted"), _dots(u, v, 0.64, 0.30, local_edge), ink)
    ink = ink * (0.5 - (distance + _RIM) / local_edge).clamp(0, 1)
    shade = 1 - (1 - _INK) * ink  # [B, T, H, W]
    color = palette[scenes.objects("color")[:, i]][:, :, None, None, None]
    image[present] = torch.lerp(image[present], color * shade[:, None], cover[:, None])
    return image
