"""What a clip shows: a batch of scenes as one integer table of attributes and one table of free numbers.

Everything a caption can say is an attribute; everything it cannot say (exact position, phase) comes from
`Scenes.jitter`. Scenes are drawn on the CPU from a seed, so a batch is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_OBJECTS = 3
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
BACKGROUND_COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "gray")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon")
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped", "dotted")
MOTIONS = (
    "resting",
    "left",
    "right",
    "up",
    "down",
    "bouncing",
    "circling",
    "spinning",
    "growing",
    "shrinking",
)
BACKGROUNDS = ("plain", "gradient", "checkerboard", "stripes", "dots", "clouds")
CAMERAS = ("still", "pan left", "pan right", "zoom in", "zoom out")

OBJECT_FIELDS = {"shape": SHAPES, "color": COLORS, "size": SIZES, "texture": TEXTURES, "motion": MOTIONS}
SCENE_FIELDS = {"background": BACKGROUNDS, "background_color": BACKGROUND_COLORS, "camera": CAMERAS}

# Columns of `Scenes.attributes`: count, shape1, color1, ..., motion3, background, background_color, camera.
ATTRIBUTES: tuple[str, ...] = (
    "count",
    *(f"{field}{i}" for i in range(1, MAX_OBJECTS + 1) for field in OBJECT_FIELDS),
    *SCENE_FIELDS,
)
# Number of classes of each column; an object that is absent has the last class of its fields.
CLASSES: tuple[int, ...] = (
    MAX_OBJECTS,
    *(len(values) + 1 for _ in range(MAX_OBJECTS) for values in OBJECT_FIELDS.values()),
    *(len(values) for values in SCENE_FIELDS.values()),
)
COLUMN = {name: i for i, name in enumerate(ATTRIBUTES)}
JITTER = 24
HELD_OUT_FRACTION = 64  # one combination in 64 is never trained on

_COUNT_WEIGHTS = (0.70, 0.22, 0.08)
_SIZE_WEIGHTS = (0.27, 0.38, 0.35)
_TEXTURE_WEIGHTS = (0.62, 0.21, 0.17)
_MOTION_WEIGHTS = (0.15, 0.10, 0.10, 0.09, 0.09, 0.15, 0.11, 0.11, 0.05, 0.05)
_BACKGROUND_WEIGHTS = (0.20, 0.14, 0.20, 0.16, 0.15, 0.15)
_CAMERA_WEIGHTS = (0.68, 0.08, 0.08, 0.08, 0.08)


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes: `attributes` [B, 19] int64 (columns `ATTRIBUTES`), `jitter` [B, 24] in [0, 1)."""

    attributes: Tensor
    jitter: Tensor

    def __len__(self) -> int:
        return self.attributes.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(self.attributes[index], self.jitter[index])

    def column(self, name: str) -> Tensor:
        """One attribute of every scene, [B]."""
        return self.attributes[:, COLUMN[name]]

    def objects(self, field: str) -> Tensor:
        """One attribute of every object, [B, 3]."""
        return torch.stack([self.column(f"{field}{i}") for i in range(1, MAX_OBJECTS + 1)], dim=1)

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(self.attributes.to(device), self.jitter.to(device))

    @staticmethod
    def concatenate(parts: list[Scenes]) -> Scenes:
        return Scenes(torch.cat([p.attributes for p in parts]), torch.cat([p.jitter for p in parts]))


def is_held_out(attributes: Tensor) -> Tensor:
    """[B] bool: decided by a hash of the main object's shape, colour, motion and of the background."""
    key = torch.zeros_like(attributes[:, 0])
    for name in ("shape1", "color1", "motion1", "background", "background_color"):
        key = key * 11 + attributes[:, COLUMN[name]]
    mixed = (key * 2654435761) % 2**32
    return (mixed >> 16) % HELD_OUT_FRACTION == 0


def sample_scenes(count: int, seed: int, held_out: bool = False) -> Scenes:
    """Draw `count` scenes from the training combinations, or from the held-out ones."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[Scenes] = []
    found = 0
    while found < count:
        scenes = _draw(count * HELD_OUT_FRACTION if held_out else count + count // 16 + 8, generator)
        scenes = scenes[is_held_out(scenes.attributes) == held_out]
        parts.append(scenes)
        found += len(scenes)
    return Scenes.concatenate(parts)[:count]


def _draw(count: int, generator: torch.Generator) -> Scenes:
    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    def pick(weights: tuple[float, ...]) -> Tensor:
        edges = torch.tensor(weights).cumsum(0)
        return torch.bucketize(uniform() * edges[-1], edges[:-1], right=True)

    objects = pick(_COUNT_WEIGHTS) + 1
    several, three = objects >= 2, objects >= 3
    background = pick(_BACKGROUND_WEIGHTS)
    # A permutation of the palette gives each object and the background a colour of its own.
    palette = uniform(len(COLORS)).argsort(dim=1)

    fields: dict[str, list[Tensor]] = {field: [] for field in OBJECT_FIELDS}
    main_motion = pick(_MOTION_WEIGHTS)
    translating = (main_motion >= MOTIONS.index("left")) & (main_motion <= MOTIONS.index("down"))
    scaling = main_motion >= MOTIONS.index("growing")
    spinning, round_shapes = MOTIONS.index("spinning"), (SHAPES.index("circle"), SHAPES.index("ring"))
    for i in range(MAX_OBJECTS):
        shape = (uniform() * len(SHAPES)).long()
        texture = pick(_TEXTURE_WEIGHTS)
        if i == 0:
            motion = main_motion
            size = torch.where(several, (uniform() * 2).long() + 1, pick(_SIZE_WEIGHTS))
            size = torch.where(scaling | three, SIZES.index("medium"), size)
        else:
            die = uniform()
            motion = torch.where(die < 0.25, spinning, MOTIONS.index("resting"))
            motion = torch.where((die > 0.70) & translating & ~three, main_motion, motion)
            size = torch.full_like(shape, SIZES.index("small"))
            texture = torch.where(uniform() < 0.8, TEXTURES.index("plain"), texture)
        # A plain disc or ring shows no rotation.
        is_round = (shape == round_shapes[0]) | (shape == round_shapes[1])
        invisible = (motion == spinning) & is_round & (texture == TEXTURES.index("plain"))
        texture = torch.where(invisible, TEXTURES.index("striped"), texture)
        values = {"shape": shape, "color": palette[:, i], "size": size, "texture": texture, "motion": motion}
        for field, value in values.items():
            fields[field].append(torch.where(objects > i, value, len(OBJECT_FIELDS[field])))

    camera = pick(_CAMERA_WEIGHTS)
    panning = (camera == CAMERAS.index("pan left")) | (camera == CAMERAS.index("pan right"))
    featureless = background <= BACKGROUNDS.index("gradient")
    # A pan needs something to see moving; zooming and growing look alike; three objects need the whole frame.
    camera = torch.where(
        (panning & featureless) | (scaling & ~panning) | three, CAMERAS.index("still"), camera
    )

    columns = [objects - 1]
    for i in range(MAX_OBJECTS):
        columns += [fields[field][i] for field in OBJECT_FIELDS]
    columns += [background, palette[:, MAX_OBJECTS], camera]
    return Scenes(torch.stack(columns, dim=1), uniform(JITTER))
