"""How much the transformer's output suffers from an error of one layer's attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_sparse import kernels
from dit_sparse.api import sparse_attention as attached
from dit_sparse.engine import SparseMethod
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import TopK

if TYPE_CHECKING:
    from dit_sparse.corrections import CorrectionInput

RELATIVE_ERROR = 0.05
"""Norm of the perturbation by that of the layer's attention: above the rounding of bfloat16, and small enough
for the transformer to answer in proportion."""


@dataclass(frozen=True)
class TowardsSparse:
    """A correction that moves dense attention towards the sparse one by a fixed part of its norm, sample by
    sample.

    The direction is one that sparse attention errs in, which noise is not: errors of neighbouring tokens are
    alike, and later layers average less of them away.

    Args:
        relative_error: of the result, > 0.
    """

    relative_error: float

    def apply(self, given: CorrectionInput) -> Tensor:
        """The perturbed output ``[B, N, H, D]``; dense where the sparse one does not differ."""
        dense, _ = kernels.dense_attention(given.q, given.k, given.v, scale=given.scale)
        error = given.out.float() - dense.float()
        size, wanted = (_norm(x).clamp(min=1e-30) for x in (error, self.relative_error * dense.float()))
        return (dense.float() + error * (wanted / size)).to(given.out.dtype)


@dataclass(frozen=True)
class Inputs:
    """Arguments of one forward of a transformer."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class InputKeeper:
    """Remembers the arguments of the forward that runs."""

    def __init__(self) -> None:
        self._now: Inputs | None = None

    @contextmanager
    def watching(self, transformer: nn.Module) -> Iterator[None]:
        """Watch a transformer's forwards while the context is open."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._now = Inputs(args, kwargs)

        hook = transformer.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
            self._now = None

    def copy(self) -> Inputs:
        """A copy that later steps do not write to."""
        assert self._now is not None, "called outside of a forward"
        return Inputs(_copied(self._now.args), _copied(self._now.kwargs))


@torch.no_grad()
def layer_sensitivity(
    transformer: nn.Module,
    inputs: Inputs,
    num_layers: int,
    density: float,
    on_layer: Callable[[], None],
    relative_error: float = RELATIVE_ERROR,
) -> Tensor:
    """Squared relative error of the transformer's output by squared relative error of every layer.

    One forward without and one with every layer perturbed. Nothing may be attached to the transformer.

    Args:
        transformer: the model.
        inputs: of a forward.
        num_layers: self-attention layers.
        density: of the sparse attention in whose direction a layer is perturbed, by :class:`TowardsSparse`.
        on_layer: called after every layer.
        relative_error: see :class:`TowardsSparse`.

    Returns:
        float32 ``[num_layers]``, mean over the samples.
    """
    exact = _output(transformer, inputs)
    found = []
    for layer in range(num_layers):
        others = [other for other in range(num_layers) if other != layer]
        method = SparseMethod(
            "perturbed",
            TopK(density, "head", "mean_key"),
            correction=TowardsSparse(relative_error),
            schedule=Schedule(dense_layers=others, min_tokens=0),
        )
        with attached(transformer, method):
            moved = _output(transformer, inputs)
        change = (_norm(moved - exact) / _norm(exact).clamp(min=1e-30)).square().mean()
        found.append(change / relative_error**2)
        on_layer()
    return torch.stack(found).cpu()


def _output(transformer: nn.Module, inputs: Inputs) -> Tensor:
    out = transformer(*inputs.args, **inputs.kwargs)
    first = out[0]
    assert isinstance(first, Tensor)
    return first.float()


def _norm(x: Tensor) -> Tensor:
    """Of every sample ``[B, ...]``: float32, like x with sizes 1."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (tuple, list)):
        return type(value)(_copied(item) for item in value)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value
