"""CogVideoX 1.0 and 1.5: text to video, image to video, video to video. Text comes first in the joint
sequence."""

from __future__ import annotations

from typing import Any

from dit_sparse.adapters.base import Adapter, Inputs, grid_5d, register_adapter
from dit_sparse.layout import TokenLayout

FRAMES_DIM = 1


def _layout(transformer: Any, inputs: Inputs) -> TokenLayout:
    config = transformer.config
    patch = (config.patch_size_t or 1, config.patch_size, config.patch_size)
    text = inputs["encoder_hidden_states"].shape[1]
    grid = grid_5d(inputs["hidden_states"], patch, frames_dim=FRAMES_DIM)
    return TokenLayout(*grid, text_tokens=text, text_position="first" if text else "none")


COGVIDEOX = register_adapter(
    Adapter(
        family="cogvideox",
        transformer_classes=("CogVideoXTransformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn1",
        layout=_layout,
        guidance="batched",
        frames_dim=FRAMES_DIM,
    )
)
