"""Wan 2.1 and 2.2: text to video, image to video, video to video, both experts of the A14B models."""

from __future__ import annotations

from typing import Any

from dit_sparse.adapters.base import Adapter, Inputs, grid_5d, register_adapter
from dit_sparse.layout import TokenLayout


def _layout(transformer: Any, inputs: Inputs) -> TokenLayout:
    return TokenLayout(*grid_5d(inputs["hidden_states"], tuple(transformer.config.patch_size)))


WAN = register_adapter(
    Adapter(
        family="wan",
        transformer_classes=("WanTransformer3DModel",),
        attention=r"blocks\.\d+\.attn1",
        layout=_layout,
    )
)
