"""What sparse attention is inside ``torch.compile``: two opaque operators, so that a whole transformer is one
graph.

They find their attachment by a number, because operators take tensors and numbers only. The layer travels as
a 0-d tensor: as a Python number it would make torch.compile specialise, and recompile blocks, layer by layer.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor


class Attached(Protocol):
    """What the operators call."""

    def begin(self, inputs: dict[str, Any]) -> None:
        """A forward starts with these inputs by name."""
        ...

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
    ) -> Tensor:
        """Attention of one layer."""
        ...


_ATTACHED: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_KEYS = itertools.count()


def make_key(attached: Attached) -> int:
    """The number by which the operators find ``attached`` for as long as it lives."""
    key = next(_KEYS)
    _ATTACHED[key] = attached
    return key


@torch.library.custom_op("dit_sparse::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    layer: Tensor,
    attachment: int,
    scale: float | None,
) -> Tensor:
    """Attention of one layer ``[B, N, H, D]``."""
    return _ATTACHED[attachment].attend(int(layer), q, k, v, mask, scale).contiguous()


@attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    layer: Tensor,
    attachment: int,
    scale: float | None,
) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@torch.library.custom_op("dit_sparse::begin", mutates_args=())
def begin(
    hidden_states: Tensor,
    timestep: Tensor,
    text: Tensor | None,
    text_mask: Tensor | None,
    attachment: int,
    mask_name: str,
) -> Tensor:
    """Announce a forward; returns a copy of ``hidden_states``.

    The copy (of the latents, the smallest tensor there is) makes every attention of the forward depend on the
    announcement: what has no users the compiler drops, what has no inputs it may move.
    """
    inputs = {
        "hidden_states": hidden_states,
        "timestep": timestep,
        "encoder_hidden_states": text,
        mask_name: text_mask,
    }
    _ATTACHED[attachment].begin(inputs)
    return hidden_states.clone()


@begin.register_fake
def _(
    hidden_states: Tensor,
    timestep: Tensor,
    text: Tensor | None,
    text_mask: Tensor | None,
    attachment: int,
    mask_name: str,
) -> Tensor:
    return torch.empty_like(hidden_states)
