"""Processors that carry sparse attention: dynamic subclasses of the stock ones.

The subclass runs the stock ``__call__``, so projections, norms and RoPE stay diffusers' own (norms and RoPE
may run fused: :mod:`dit_sparse.adapters.fused`). Only the attention itself is diverted. Families that call
``dispatch_attention_fn`` reach us through a backend of our own, and the tap rides in the ``parallel_config``
that the stock call hands through to it. Families that call ``F.scaled_dot_product_attention`` are caught by a
torch function mode around the stock call. (The mode would serve both, but torch.compile cannot trace
``Tensor.unflatten`` under one, which the dispatch families use.) Neither way touches anything that another
model or thread reads.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dit_sparse.adapters.fused import NormRopeFusion


class Tap(Protocol):
    """Takes the place of one layer's attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """Attention over ``[B, N, H, D]``.

        Args:
            q, k, v: after norms and RoPE.
            mask: the mask the stock processor passed.
            scale: softmax scale, None for 1/sqrt(D).
        """
        ...

    def bypass(self, obstacle: str) -> None:
        """Take note that this layer's call runs stock, and why."""
        ...


class SparseProcessor:
    """Mixin over a stock processor class; see :func:`make_processor`.

    Attributes:
        tap: where attention goes.
        stock: the processor this one stands in for.
        fusion: runs the norms and RoPE of eager calls; None leaves them to the stock chain.
    """

    tap: Tap
    stock: Any
    fusion: NormRopeFusion | None

    def dense(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """What the stock processor would have computed: ``[B, N, H, D]``."""
        raise NotImplementedError

    def call_stock(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the stock ``__call__`` with its attention diverted."""
        raise NotImplementedError

    def released(self) -> Any:
        """The stock processor, given what was set on this one meanwhile."""
        raise NotImplementedError


class SdpaProcessor(SparseProcessor):
    """Mixin for stock processors that call ``F.scaled_dot_product_attention``."""

    def call_stock(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        with _SdpaMode(self.tap):
            return call(self, *args, **kwargs)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)

    def released(self) -> Any:
        return self.stock


class DispatchProcessor(SparseProcessor):
    """Mixin for stock processors that go through ``dispatch_attention_fn``.

    The stock call reads ``_attention_backend`` and ``_parallel_config`` and passes both on. Outside of it
    diffusers reads and writes them too, from ``set_attention_backend`` and ``enable_parallelism``; what is
    written then is kept for the dense calls, so a swap after attaching is honoured, not lost.
    """

    _own_backend: Any
    _diverting = False
    dense_backend: Any = None
    parallel_config: Any = None

    @property
    def _attention_backend(self) -> Any:
        return self._own_backend if self._diverting else self.dense_backend

    @_attention_backend.setter
    def _attention_backend(self, value: Any) -> None:
        self.dense_backend = value

    @property
    def _parallel_config(self) -> Any:
        return _Carrier(self.tap) if self._diverting else self.parallel_config

    @_parallel_config.setter
    def _parallel_config(self, value: Any) -> None:
        self.parallel_config = value

    def call_stock(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        if self.parallel_config is not None:
            self.tap.bypass("parallelism")
            return call(self, *args, **kwargs)
        self._diverting = True
        try:
            return call(self, *args, **kwargs)
        finally:
            self._diverting = False

    def dense(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        return dispatch_attention_fn(q, k, v, attn_mask=mask, scale=scale, backend=self.dense_backend)

    def released(self) -> Any:
        current = {"_attention_backend": self.dense_backend, "_parallel_config": self.parallel_config}
        for name, value in current.items():
            if getattr(self.stock, name, None) is not value:
                setattr(self.stock, name, value)
        return self.stock


@dataclass(frozen=True)
class _Carrier:
    """Rides in ``parallel_config`` from the stock call to our backend."""

    tap: Tap


class _SdpaMode(TorchFunctionMode):
    """Hands ``F.scaled_dot_product_attention`` inside the stock call to the tap."""

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self._tap = tap

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return _divert(self._tap, *args, **kwargs)


def _divert(
    tap: Tap,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The tap in place of ``F.scaled_dot_product_attention``, ``[B, H, N, D]`` in and out."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return _tapped(q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa, _Carrier(tap)).transpose(1, 2)


def _tapped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    _parallel_config: Any = None,
) -> Tensor:
    """Backend function of diffusers' dispatch, ``[B, N, H, D]`` in and out."""
    if dropout_p or is_causal or enable_gqa:
        raise ValueError(
            f"sparse attention takes plain self-attention; got dropout_p={dropout_p}, "
            f"is_causal={is_causal}, enable_gqa={enable_gqa}: call disable_sparse_attention() for this model"
        )
    if not query.dtype == key.dtype == value.dtype and torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)  # as torch's own attention casts
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return _parallel_config.tap.attend(query, key, value, attn_mask, scale)


@functools.cache
def _own_backend() -> Any:
    """Our member of diffusers' closed backend enum, registered on first use.

    It is made by hand and not listed among the enum's members: dispatch accepts any instance, and nobody can
    select it by name, which without a tap would mean nothing.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    member = str.__new__(AttentionBackendName, "dit_sparse")
    member._name_, member._value_ = "DIT_SPARSE", "dit_sparse"
    _AttentionBackendRegistry.register(member)(_tapped)
    return member


def make_processor(stock: Any, tap: Tap, fusion: NormRopeFusion | None = None) -> Any:
    """A processor that behaves as ``stock`` does, except that its attention goes through ``tap``, and its
    norms and RoPE through ``fusion`` where one is given.

    ``stock`` is left untouched; its attributes are copied.
    """
    cls: Any = type(stock)
    processor: Any = object.__new__(_processor_class(cls))
    for name, value in vars(stock).items():
        setattr(processor, name, value)
    processor.tap, processor.stock, processor.fusion = tap, stock, fusion
    return processor


@functools.cache
def _processor_class(stock: Any) -> type:
    """Subclass of (our mixin, stock class) that keeps the stock signature: models filter kwargs by it."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or self.fusion is None:
            return self.call_stock(stock.__call__, *args, **kwargs)
        return self.fusion.run(stock, functools.partial(self.call_stock, stock.__call__), *args, **kwargs)

    functools.update_wrapper(call, stock.__call__)
    members: dict[str, Any] = {"__call__": call, "__module__": __name__}
    mixin: type = SdpaProcessor
    if hasattr(stock, "_attention_backend"):
        mixin = DispatchProcessor
        members["_own_backend"] = _own_backend()
    cls = type(f"Sparse{stock.__name__}", (mixin, stock), members)
    _register_for_layer_skip(cls, stock)
    return cls


def _register_for_layer_skip(cls: type, stock: type) -> None:
    """diffusers' LayerSkip looks processors up by exact class: ours is to be treated as the stock one."""
    from diffusers.hooks._helpers import AttentionProcessorRegistry

    try:
        metadata = AttentionProcessorRegistry.get(stock)
    except ValueError:  # LayerSkip does not know this model
        return
    AttentionProcessorRegistry.register(cls, metadata)
