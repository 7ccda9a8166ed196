"""QK norms and RoPE of the stock processors in one kernel.

The stock ``__call__`` stays in charge of projections, attention and output. It is handed the attention module
behind a view whose ``norm_q`` and ``norm_k`` normalise and turn in one pass, and no rotary embedding, so that
its own chain of element-wise kernels has nothing left to turn. Nothing on the module changes, and where the
kernel would not compute what the chain does, the chain runs and the reason is counted.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dit_sparse.kernels.checks import FLOAT_DTYPES
from dit_sparse.kernels.dispatch import use_triton
from dit_sparse.kernels.norm_rope import Rounding, norm_rope, rotary_table

_MODELS = "diffusers.models.transformers"
ROTARY_ARGUMENT = {
    f"{_MODELS}.transformer_wan.WanAttnProcessor": "rotary_emb",
    f"{_MODELS}.transformer_hunyuan_video.HunyuanVideoAttnProcessor2_0": "image_rotary_emb",
}
"""Processor classes whose call normalises q and k and then turns adjacent pairs of the first tokens, and the
argument that brings (cos, sin). Exact classes: a subclass may do anything."""

ROUNDING: dict[str, Rounding] = {
    "torch.nn.modules.normalization.RMSNorm": "torch",
    "diffusers.models.normalization.RMSNorm": "diffusers",
}
"""Norm classes that the kernel reproduces, with their rounding points."""


class NormRopeFusion:
    """Fused norms and RoPE of one transformer's attention layers; see :func:`make_fusion`.

    It serves eager calls. Compiled graphs keep the stock chain, which the compiler fuses by itself.

    Args:
        auto: run only where the Triton kernel does; else everywhere, by the torch definition if need be.

    Attributes:
        fused_calls: attention calls of this generation that ran fused.
        stock_calls: those that could not, by reason.
    """

    def __init__(self, auto: bool) -> None:
        self._auto = auto
        self._table: tuple[weakref.ref[Tensor], Tensor] | None = None
        self.fused_calls = 0
        self.stock_calls: Counter[str] = Counter()

    def new_generation(self) -> None:
        """Forget the counts of the previous one."""
        self.fused_calls = 0
        self.stock_calls.clear()

    def summary(self) -> str:
        """The counts in one line."""
        stock = "".join(f"; stock in {n}: {reason}" for reason, n in self.stock_calls.items())
        return f"norm and RoPE fused in {self.fused_calls} attention calls{stock}"

    def run(self, stock: type, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``call(*args, **kwargs)``, the call of a processor of class ``stock``, with norms and RoPE fused.

        Raises:
            RuntimeError: if the stock call has not normalised q and k once each. Then this version of
                diffusers is not what the fusion was written for, and what it returned is wrong.
        """
        given = _signature(stock).bind(*args, **kwargs)
        named = given.arguments
        attn, hidden_states = named["attn"], named["hidden_states"]
        if self._auto and not use_triton(hidden_states, "auto"):
            return call(*args, **kwargs)
        argument = ROTARY_ARGUMENT.get(_path(stock), "")
        rotary: Any = named.get(argument)
        obstacle = _obstacle(stock, attn, hidden_states, rotary)
        if obstacle is not None:
            self.stock_calls[obstacle] += 1
            return call(*args, **kwargs)
        table = self._rotary_table(*rotary)
        norms = [_NormRope(norm, attn.heads, table) for norm in (attn.norm_q, attn.norm_k)]
        named["attn"], named[argument] = _View(attn, *norms), None
        out = call(*given.args, **given.kwargs)
        if [norm.calls for norm in norms] != [1, 1]:
            raise RuntimeError(
                f"{_path(stock)} of this version of diffusers does not normalise q and k once each: "
                "pass fuse_norm_rope=False"
            )
        self.fused_calls += 1
        return out

    def _rotary_table(self, cos: Tensor, sin: Tensor) -> Tensor:
        """The kernel's form of the angles, made once per forward: the model hands the same tensors to every
        layer."""
        known = self._table
        if known is None or known[0]() is not cos:
            known = self._table = (weakref.ref(cos, self._drop), rotary_table(cos, sin))
        return known[1]

    def _drop(self, dead: weakref.ref[Tensor]) -> None:
        if self._table is not None and self._table[0] is dead:
            self._table = None


class _View:
    """An attention module with other norms; all else is the module's own."""

    def __init__(self, attn: Any, norm_q: _NormRope, norm_k: _NormRope) -> None:
        self._attn = attn
        self.norm_q = norm_q
        self.norm_k = norm_k

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attn, name)


@dataclass
class _NormRope:
    """Stands in for a norm module: normalises and turns."""

    norm: Any
    heads: int
    table: Tensor
    calls: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """``[B, N, H, D]`` or, before the heads are split, ``[B, N, H * D]``."""
        self.calls += 1
        tokens = x if x.dim() == 4 else x.unflatten(2, (self.heads, -1))
        rounding = ROUNDING[_path(type(self.norm))]
        out = norm_rope(tokens, self.norm.weight, self.table, eps=self.norm.eps, rounding=rounding)
        return out.view(x.shape)


def _obstacle(stock: type, attn: Any, hidden_states: Tensor, rotary: Any) -> str | None:
    """Why this call must run stock, in words, or None."""
    if _path(stock) not in ROTARY_ARGUMENT:
        return f"the processor is a {stock.__name__}"
    if rotary is None:
        return "no rotary embedding was passed"
    dim = rotary[0].shape[-1]
    if rotary[0].numel() != hidden_states.shape[1] * dim or rotary[0].device != hidden_states.device:
        return "the rotary embedding does not cover the video tokens one by one, or is on another device"
    if rotary[0].dtype != torch.float32:
        return (
            f"the rotary embedding is {rotary[0].dtype}, as .to(dtype) makes it and from_pretrained does not"
        )
    if torch.is_grad_enabled() and (hidden_states.requires_grad or _trains(attn)):
        return "gradients are recorded: run under torch.no_grad()"
    if hidden_states.dtype not in FLOAT_DTYPES or torch.is_autocast_enabled(hidden_states.device.type):
        return "the precision is float64 or chosen by autocast"
    widths = (dim, attn.heads * dim)
    for norm in (attn.norm_q, attn.norm_k):
        if (obstacle := _norm_obstacle(norm, widths, hidden_states)) is not None:
            return obstacle
    return None


def _trains(attn: Any) -> bool:
    return any(parameter.requires_grad for parameter in attn.parameters())


def _norm_obstacle(norm: Any, widths: tuple[int, int], hidden_states: Tensor) -> str | None:
    """Why the kernel cannot take this norm's place, or None; ``widths`` of one head and of all."""
    if _path(type(norm)) not in ROUNDING:
        return f"the norm is a {type(norm).__name__}"
    if norm._forward_hooks or norm._forward_pre_hooks or "forward" in vars(norm):
        return "a norm carries hooks, as offloading module by module sets them"
    if norm.weight is None or getattr(norm, "bias", None) is not None or not norm.eps:
        return "the norm has no weight or eps, or has a bias"
    if norm.weight.dtype != hidden_states.dtype or norm.weight.device != hidden_states.device:
        return "a norm's weight has another precision or device than the hidden states"
    return None if norm.weight.numel() in widths else "a norm's width is neither a head's nor the model's"


def make_fusion(setting: bool | Literal["auto"], layers: Sequence[tuple[str, Any]]) -> NormRopeFusion | None:
    """The fusion for a transformer's attention layers.

    Args:
        setting: "auto": where the processors are known and the Triton kernel runs; True: also by the torch
            definition, which is no faster than the stock chain; False: not at all.
        layers: (path, attention module), see :meth:`~dit_sparse.adapters.base.Adapter.attention_layers`.

    Returns:
        None when it is off, or could not serve any of these layers.

    Raises:
        ValueError: for another setting, or True where a layer's processor is not a known one.
    """
    if setting not in (True, False, "auto"):
        raise ValueError(f"fuse_norm_rope must be 'auto', True or False, got {setting!r}")
    classes = {_path(type(module.processor)) for _, module in layers}
    unknown = sorted(classes - ROTARY_ARGUMENT.keys())
    if setting is True and unknown:
        raise ValueError(
            f"fuse_norm_rope=True, but {', '.join(unknown)} is not a processor whose norms can be fused "
            f"({', '.join(ROTARY_ARGUMENT)}): pass 'auto' or False"
        )
    if setting is False or classes.isdisjoint(ROTARY_ARGUMENT):
        return None
    return NormRopeFusion(auto=setting == "auto")


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@functools.cache
def _signature(stock: Any) -> inspect.Signature:
    """Of the call, without ``self``."""
    signature = inspect.signature(stock.__call__)
    return signature.replace(parameters=list(signature.parameters.values())[1:])
