"""The models and resolutions that people run, and data of their shapes with structure on the grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.layout import Branch, TextPosition, TokenLayout, step_at

STEPS = 50


@dataclass(frozen=True)
class Model:
    """One transformer at one resolution.

    Args:
        family: as the adapters name it.
        grid: (T, H, W) tokens after patchify.
        heads, dim: of the self-attention.
        layers: self-attention layers of the full model.
        forwards: attention calls of every layer per step: 2 with classifier-free guidance, also where both
            branches share a batch; 1 for a guidance-distilled model.
        guard: usual fraction of first steps left dense.
        text_tokens, text_position: text in the same sequence.
    """

    family: str
    grid: tuple[int, int, int]
    heads: int
    dim: int
    layers: int
    forwards: int
    guard: float
    text_tokens: int = 0
    text_position: TextPosition = "none"

    @property
    def layout(self) -> TokenLayout:
        """Grid and text run."""
        return TokenLayout(*self.grid, text_tokens=self.text_tokens, text_position=self.text_position)

    @property
    def dense_steps(self) -> int:
        """Steps of a :data:`STEPS`-step run that the guard leaves dense."""
        return step_at(self.guard, STEPS)


MODELS = {
    "Wan-14B 720p": Model("wan", (21, 45, 80), 40, 128, 40, 2, 0.2),
    "HunyuanVideo 720p": Model("hunyuan_video", (33, 45, 80), 24, 128, 60, 1, 0.1, 256, "last"),
    "Wan-1.3B 480p": Model("wan", (21, 30, 52), 12, 128, 30, 2, 0.2),
    "CogVideoX-5B 480p": Model("cogvideox", (13, 30, 45), 48, 64, 42, 2, 0.2, 226, "first"),
}
QUICK_MODELS = ("Wan-1.3B 480p", "CogVideoX-5B 480p")


BRANCHES: dict[str, tuple[Branch, ...]] = {"wan": ("conditional", "unconditional")}
"""Guidance branches with forwards of their own, by family; one of another family is "batched"."""


def branches_of(model: Model) -> tuple[Branch, ...]:
    """The branches that have calls of their own."""
    return BRANCHES.get(model.family, ("batched",)) if model.forwards > 1 else ("batched",)


def chosen_models(quick: bool) -> dict[str, Model]:
    """The models of a full or a quick run."""
    return {name: model for name, model in MODELS.items() if not quick or name in QUICK_MODELS}


CELL = 6
"""Tokens per wave of the random fields, roughly, along every axis."""
NOISE = 0.5
"""Standard deviation of the noise on top of fields of unit variance."""


def smooth_field(channels: int, grid: tuple[int, int, int], device: str) -> Tensor:
    """Low-frequency random values, float32 ``[T * H * W, channels]`` of unit variance: interpolated
    noise of a coarse grid."""
    coarse = [max(2, round(n / CELL)) for n in grid]
    field = torch.nn.functional.interpolate(
        torch.randn(1, channels, *coarse, device=device), size=grid, mode="trilinear", align_corners=True
    )
    field = field.flatten(2)[0].T
    return field / field.std(dim=0, keepdim=True)


def smooth_qkv(
    layout: TokenLayout, heads: int, dim: int, device: str, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v ``[1, N, H, D]`` whose attention has the structure that planning looks for.

    Every head has a random field over the grid that q and k share, with noise on top, so that a token attends
    to places that look alike: in its neighbourhood first. Heads differ in sharpness. Text tokens are noise.
    It stands for video features no further than that: clusters and selections have something to find.
    """
    tokens, video = layout.num_tokens, slice(layout.video_start, layout.video_start + layout.video_tokens)
    q, k, v = (torch.randn(1, tokens, heads, dim, device=device, dtype=dtype) for _ in range(3))
    for head in range(heads):
        field = smooth_field(dim, layout.grid, device)
        sharpness = 0.6 + 0.4 * head / max(1, heads - 1)
        for x in (q, k):
            noise = torch.randn(field.shape, device=device)
            x[0, video, head] = (sharpness * field + NOISE * noise).to(dtype)
        v[0, video, head] = (field.flip(1) + NOISE * torch.randn(field.shape, device=device)).to(dtype)
    return q, k, v
