"""Where everything is at every frame. Lengths are fractions of the frame, angles radians, y points down.

Speeds are per frame, so 17 and 33 frames move alike; the fastest edge moves about 3 px per frame at 128 px.
All paths are centred in time: the middle frame shows the scene's layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scenes import CAMERAS, MAX_OBJECTS, MOTIONS, Scenes

RADIUS = (0.145, 0.195, 0.25, 0.145)  # small, medium, large, absent (not drawn)
TRAVEL = 0.0145  # moving left, right, up, down
BOUNCE_HEIGHT, BOUNCE_PERIOD = 0.20, 20.0
ORBIT_RADIUS, ORBIT_SPEED = 0.125, 0.16
SPIN = 0.09
GROWTH = 0.030
PAN = 0.0095
ZOOM = 0.013


@dataclass(frozen=True)
class Paths:
    """Objects: `center` [B, 3, T, 2], `radius`, `angle` [B, 3, T]. Camera: `pan` [B, T, 2], `zoom` [B, T]."""

    center: Tensor
    radius: Tensor
    angle: Tensor
    pan: Tensor
    zoom: Tensor


def plan_paths(scenes: Scenes, times: Tensor, num_frames: int) -> Paths:
    """Positions at the frame numbers `times` [T] (any subset) of a clip of `num_frames`."""
    motion = scenes.objects("motion")  # [B, 3]
    since_middle = (times - (num_frames - 1) / 2)[None, None]  # [1, 1, T]
    jitter = scenes.jitter

    def is_motion(name: str) -> Tensor:
        return (motion == MOTIONS.index(name))[..., None].float()

    center = _layout(scenes)[:, :, None].expand(-1, -1, len(times), -1).clone()
    center[..., 0] += TRAVEL * since_middle * (is_motion("right") - is_motion("left"))
    center[..., 1] += TRAVEL * since_middle * (is_motion("down") - is_motion("up"))

    hop = torch.sin(torch.pi * (0.35 + 0.25 * jitter[:, 0, None, None] + times / BOUNCE_PERIOD)).abs()
    center[..., 1] += BOUNCE_HEIGHT * (0.5 - hop) * is_motion("bouncing")

    several = (scenes.column("count") > 0).float()[:, None, None]
    turn = 2 * torch.pi * jitter[:, 1, None, None] + ORBIT_SPEED * times
    orbit = ORBIT_RADIUS * (1 - 0.25 * several) * is_motion("circling")
    center[..., 0] += orbit * torch.cos(turn)
    center[..., 1] += orbit * torch.sin(turn)

    size = torch.tensor(RADIUS, device=times.device)[scenes.objects("size")]
    radius = (size * (0.96 + 0.08 * jitter[:, 2:5]))[..., None]
    radius = radius * (1 + GROWTH * since_middle * (is_motion("growing") - is_motion("shrinking"))).clamp(
        min=0.3
    )
    angle = 0.24 * (jitter[:, 5:8] - 0.5)[..., None] + SPIN * times * is_motion("spinning")

    camera = scenes.column("camera")[:, None]
    tau = since_middle[0]
    pan = torch.zeros(len(scenes), len(times), 2, device=times.device)
    right, left = camera == CAMERAS.index("pan right"), camera == CAMERAS.index("pan left")
    pan[..., 0] = PAN * tau * (right.float() - left.float())
    inwards = (camera == CAMERAS.index("zoom in")).float() - (camera == CAMERAS.index("zoom out")).float()
    return Paths(center, radius, angle, pan, torch.exp(ZOOM * tau * inwards))


def _layout(scenes: Scenes) -> Tensor:
    """Centres in the middle frame, [B, 3, 2].

    Several objects stand in two bands along the main object's direction of travel: it alone in one, the
    others in the other, so that nothing collides.
    """
    jitter = scenes.jitter
    count = scenes.column("count")[:, None]  # 0, 1, 2 for one, two, three objects
    spread = jitter[:, 8:14].view(-1, MAX_OBJECTS, 2) - 0.5
    single = (0.5 + spread[:, 0] * 0.26)[:, None].expand(-1, MAX_OBJECTS, -1)

    flip = jitter[:, 14:15] < 0.5
    swap = torch.where(jitter[:, 15:16] < 0.5, 1.0, -1.0)
    along_three = torch.stack([torch.full_like(swap, 0.5), 0.5 - 0.24 * swap, 0.5 + 0.24 * swap], dim=1)[
        ..., 0
    ]
    along_two = 0.5 + spread[..., 0] * torch.tensor([0.08, 0.30, 0.30], device=jitter.device)
    along = torch.where(count == 2, along_three, along_two)
    across = torch.tensor([0.29, 0.79, 0.79], device=jitter.device) + 0.03 * spread[..., 1]
    across = torch.where(flip, 1 - across, across)

    main = scenes.column("motion1")[:, None]
    sideways = (main == MOTIONS.index("left")) | (main == MOTIONS.index("right"))
    upright = (
        (main == MOTIONS.index("up")) | (main == MOTIONS.index("down")) | (main == MOTIONS.index("bouncing"))
    )
    horizontal = sideways | (~upright & (jitter[:, 16:17] < 0.5))
    several = torch.stack(
        [torch.where(horizontal, along, across), torch.where(horizontal, across, along)], dim=-1
    )
    return torch.where((count == 0)[..., None], single, several)
