"""What the library must know of a transformer class to attach to it, and the registry of those it knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from dit_sparse.layout import TokenLayout

Inputs = Mapping[str, Any]
"""Arguments of the transformer's forward by name."""


@dataclass(frozen=True)
class Adapter:
    """Describes one family of transformers. Register it with :func:`register_adapter` to support a new model.

    Args:
        family: short name, e.g. "wan"; methods may key their defaults by it.
        transformer_classes: names of the classes it covers.
        attention: regular expression that the module path of every self-attention layer matches fully, e.g.
            ``r"blocks\\.\\d+\\.attn1"``. Text refiners and cross-attention must not match.
        layout: ``(transformer, forward inputs) -> TokenLayout`` of this call.
        guidance: "separate" when conditional and unconditional are two forwards (conditional first),
            "batched" when they share one batch.
        text_mask: forward argument that holds the text mask ``[B, text]`` with valid tokens first, where the
            model pads its text at the tail; the padding is trimmed. None where no mask reaches
            self-attention.
        frames_dim: dimension of the frames in the transformer's 5-d ``hidden_states``.
    """

    family: str
    transformer_classes: tuple[str, ...]
    attention: str
    layout: Callable[[Any, Inputs], TokenLayout]
    guidance: Literal["separate", "batched"] = "separate"
    text_mask: str | None = None
    frames_dim: int = 2

    def attention_layers(self, transformer: nn.Module) -> list[tuple[str, Any]]:
        """(path, module) of the self-attention layers in execution order.

        Raises:
            ValueError: if none matches.
        """
        pattern = re.compile(self.attention)
        layers = [(path, module) for path, module in transformer.named_modules() if pattern.fullmatch(path)]
        if not layers:
            raise ValueError(
                f"no module of {type(transformer).__name__} matches {self.attention!r}: "
                "correct the adapter's `attention` pattern"
            )
        return layers


_ADAPTERS: dict[str, Adapter] = {}


def register_adapter(adapter: Adapter) -> Adapter:
    """Make an adapter known for its transformer classes; a later one replaces an earlier one."""
    for name in adapter.transformer_classes:
        _ADAPTERS[name] = adapter
    return adapter


def find_adapter(transformer: nn.Module) -> Adapter:
    """The adapter of this transformer, by its class or a base class.

    Raises:
        ValueError: for an unknown class; the message says how to describe it.
    """
    for cls in type(transformer).__mro__:
        if cls.__name__ in _ADAPTERS:
            return _ADAPTERS[cls.__name__]
    raise ValueError(
        f"{type(transformer).__name__} is not a transformer this version knows "
        f"({', '.join(sorted(_ADAPTERS))}). "
        "Describe it with dit_sparse.adapters.Adapter(...) and dit_sparse.adapters.register_adapter(...)"
    )


def supported_models() -> dict[str, list[str]]:
    """Transformer class names by family."""
    families: dict[str, list[str]] = {}
    for name, adapter in sorted(_ADAPTERS.items()):
        families.setdefault(adapter.family, []).append(name)
    return families


def grid_5d(hidden_states: Tensor, patch: tuple[int, int, int], frames_dim: int = 2) -> tuple[int, int, int]:
    """(T, H, W) after patchify of a latent video ``[B, C, F, H, W]`` (``frames_dim=1``: ``[B, F, C, H,
    W]``)."""
    frames, height, width = hidden_states.shape[frames_dim], hidden_states.shape[3], hidden_states.shape[4]
    return (frames // patch[0], height // patch[1], width // patch[2])
