"""What is carried between denoising steps: one :class:`LayerState` per (transformer, branch, layer).

Methods and their configurations are immutable; everything that changes at run time lives here, is shared by
the transformers of a pipeline, and is dropped at the start of every generation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dit_sparse.layout import PackedPlan, Site, TokenLayout

Group = tuple[int, ...]


@dataclass
class LayerState:
    """Carried values of one attention layer in one guidance branch.

    ``values`` belongs to the method's axes (for example the centroids of the semantic ordering), under a key
    each of them chooses; ``shared`` likewise, but all layers of the branch hold the same. ``plan`` is reused
    until the schedule's refresh interval has passed.
    """

    values: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    plan: PackedPlan | None = None
    plan_step: int = -1
    shape: tuple[TokenLayout, int, int] | None = None

    def match(self, layout: TokenLayout, batch: int, heads: int) -> None:
        """Forget everything if the call's geometry differs from the one this state was made for."""
        if self.shape != (layout, batch, heads):
            self.values.clear()
            self.plan, self.plan_step = None, -1
            self.shape = (layout, batch, heads)

    @property
    def nbytes(self) -> int:
        """Bytes of tensors held by this layer alone."""
        held = sum(_tensor_bytes(value) for value in self.values.values())
        return held + (self.plan.nbytes if self.plan is not None else 0)


class State:
    """All layer states of one handle.

    >>> state = State()
    >>> state.layer(Site(layer=0, step=3)) is state.layer(Site(layer=0, step=4))
    True
    """

    def __init__(self) -> None:
        self._layers: dict[tuple[str, str, int, Group], LayerState] = {}
        self._shared: dict[tuple[str, str, Group], dict[str, Any]] = {}
        self._peak = 0

    def layer(self, site: Site, group: Group = ()) -> LayerState:
        """The state of this site's (transformer, branch, layer), made on first use.

        Args:
            site: where.
            group: which samples, and of what length, where lengths can differ: between the samples of a
                batch, and between branches that share their state.
        """
        shared = self._shared.setdefault((site.transformer, site.branch, group), {})
        key = (site.transformer, site.branch, site.layer, group)
        return self._layers.setdefault(key, LayerState(shared=shared))

    def reset(self) -> None:
        """Drop everything: a new generation starts."""
        self._peak = 0
        self._layers.clear()
        self._shared.clear()

    def release(self, transformer: str) -> None:
        """Drop what one transformer carries: another goes on with the generation."""
        self._peak = self.peak_bytes
        self._layers = {key: layer for key, layer in self._layers.items() if key[0] != transformer}
        self._shared = {key: values for key, values in self._shared.items() if key[0] != transformer}

    @property
    def nbytes(self) -> int:
        """Bytes held now over all transformers, layers and branches."""
        return self.nbytes_of(None)

    def nbytes_of(self, transformer: str | None) -> int:
        """Bytes held now by one transformer; by all for None."""
        layers = [layer for key, layer in self._layers.items() if transformer in (None, key[0])]
        shared = [values for key, values in self._shared.items() if transformer in (None, key[0])]
        together = (value for values in shared for value in values.values())
        return sum(layer.nbytes for layer in layers) + sum(map(_tensor_bytes, together))

    @property
    def peak_bytes(self) -> int:
        """Most bytes held at the end of a transformer's work, since the generation started."""
        return max(self._peak, self.nbytes)


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (tuple, list)):
        return sum(_tensor_bytes(item) for item in value)
    return 0
