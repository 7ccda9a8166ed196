"""HunyuanVideo: text to video, image to video. Text comes last, padded at the tail."""

from __future__ import annotations

from typing import Any

from dit_sparse.adapters.base import Adapter, Inputs, grid_5d, register_adapter
from dit_sparse.layout import TokenLayout


def _layout(transformer: Any, inputs: Inputs) -> TokenLayout:
    config = transformer.config
    patch = (config.patch_size_t, config.patch_size, config.patch_size)
    text = inputs["encoder_hidden_states"].shape[1]
    grid = grid_5d(inputs["hidden_states"], patch)
    return TokenLayout(*grid, text_tokens=text, text_position="last" if text else "none")


HUNYUAN_VIDEO = register_adapter(
    Adapter(
        family="hunyuan_video",
        transformer_classes=("HunyuanVideoTransformer3DModel",),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        layout=_layout,
        text_mask="encoder_attention_mask",
    )
)
