"""Adapters: the only room that knows diffusers. One file per model family; importing this room registers them
all."""

from dit_sparse.adapters import cogvideox, hunyuan_video, wan  # noqa: F401  (registration)
from dit_sparse.adapters.base import Adapter, find_adapter, register_adapter, supported_models

__all__ = ["Adapter", "find_adapter", "register_adapter", "supported_models"]
