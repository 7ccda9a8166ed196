"""Attention calls kept from a dense run, and what a method makes of each.

No error of an earlier layer or step reaches a later one, so a figure says where a method loses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dit_sparse.api import sparse_attention as attached
from dit_sparse.context import Observation, PlanContext
from dit_sparse.engine import SparseMethod, observed_attention, sparse_attention, uncorrected_attention
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import SelectionInput
from dit_sparse.state import LayerState


@dataclass(frozen=True)
class CapturedCall:
    """Dense attention of one call, in the model's token order.

    Args:
        site, layout: where, and its tokens.
        scale: factor on the logits.
        num_layers: self-attention layers of the transformer.
        q, k, v, out: ``[B, N, H, D]``.
        lse: float32 ``[B, H, N]``.
    """

    site: Site
    layout: TokenLayout
    scale: float
    num_layers: int
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor


@dataclass(frozen=True)
class CallFigures:
    """What a method makes of one captured call.

    Args:
        layer: where.
        error: ||sparse - dense|| / ||dense|| of the output, correction included.
        recall: share of the softmax mass in what is computed exactly, mean over rows and heads, in [0, 1].
        density: fraction of blocks computed.
    """

    layer: int
    error: float
    recall: float
    density: float


@dataclass(frozen=True)
class _Keep:
    """A selector that selects everything and keeps what it observes."""

    steps: frozenset[int]
    calls: list[CapturedCall] = field(default_factory=list)

    def wants(self, context: PlanContext) -> bool:
        return context.site.step in self.steps and context.site.branch != "unconditional"

    def observe(self, seen: Observation) -> None:
        context = seen.context
        tensors = (x.clone() for x in (seen.q, seen.k, seen.v, seen.out, seen.lse))
        self.calls.append(
            CapturedCall(context.site, context.layout, context.scale, context.num_layers, *tensors)
        )

    def select(self, given: SelectionInput) -> Tensor:
        return torch.ones(given.shape, dtype=torch.bool, device=given.q.device)


def capture_calls(
    pipe: Any, call: Mapping[str, Any], *, seed: int, steps: Collection[int]
) -> list[CapturedCall]:
    """Run a pipeline densely and keep the attention calls of some steps: the conditional branch, or both in
    one batch where the model batches them.

    Args:
        pipe: a diffusers pipeline.
        call: keyword arguments of its ``__call__``, ``num_inference_steps`` among them.
        seed: of the start noise.
        steps: which steps, from 0.

    Returns:
        By step, then by layer.
    """
    keep = _Keep(frozenset(steps))
    dense = Schedule(call["num_inference_steps"], min_tokens=0)
    pipe.set_progress_bar_config(disable=True)
    with attached(pipe, SparseMethod("capture", keep, schedule=dense)), torch.no_grad():
        pipe(**call, generator=torch.Generator("cpu").manual_seed(seed), output_type="latent")
    return keep.calls


def figures_by_layer(method: SparseMethod, calls: Sequence[CapturedCall]) -> list[CallFigures]:
    """Attend to captured calls by a method, each as if all before it had been dense.

    The last captured step is measured. Earlier ones are there to be learnt from: the method's parts observe
    them, or plan at them, so that what they carry is at hand. The guards of the method are left out of
    account.

    Args:
        method: the composition to measure.
        calls: from :func:`capture_calls`.

    Returns:
        One entry per layer.
    """
    last = max(call.site.step for call in calls)
    first = min(call.site.step for call in calls)
    guard = range(last) if last > first else ()
    schedule = replace(method.schedule, dense_steps=guard, dense_layers=(), min_tokens=0)
    method = replace(method, schedule=schedule)
    states: dict[tuple[str, int], LayerState] = {}
    figures = []
    for call in sorted(calls, key=lambda call: call.site.step):
        state = states.setdefault((call.site.transformer, call.site.layer), LayerState())
        context = method.context(
            call.layout,
            call.site,
            state,
            head_dim=call.q.shape[-1],
            scale=call.scale,
            num_layers=call.num_layers,
        )
        state.match(call.layout, call.q.shape[0], call.q.shape[2])
        if any(part.wants(context) for part in method.observers):
            observed_attention(call.q, call.k, call.v, method=method, context=context)
        elif call.site.step < last:
            sparse_attention(call.q, call.k, call.v, method=method, context=context)
        if call.site.step == last:
            figures.append(_figures(method, call, context))
    return figures


def _figures(method: SparseMethod, call: CapturedCall, context: PlanContext) -> CallFigures:
    out, plan = sparse_attention(call.q, call.k, call.v, method=method, context=context)
    _, lse = uncorrected_attention(call.q, call.k, call.v, method=method, context=context)
    error = (out.float() - call.out.float()).norm() / call.out.float().norm()
    recall = torch.exp(lse - call.lse).mean()
    return CallFigures(call.site.layer, float(error), float(recall), float(plan.density))
