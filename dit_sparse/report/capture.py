"""Attention calls kept from a dense run, and what a method makes of each.

No error of an earlier layer or step reaches a later one, so a figure says where a method loses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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
class Watch:
    """A selector that selects everything and hands on what it observes: the conditional branch, or both in
    one batch where the model batches them.

    Args:
        take: gets every call asked for.
        steps: which steps, from 0.
        layers: which layers, from 0; None for all.
        meet: told every call of the branch, asked for or not, before it runs.
    """

    take: Callable[[Observation], None]
    steps: frozenset[int]
    layers: frozenset[int] | None = None
    meet: Callable[[PlanContext], None] | None = None

    def wants(self, context: PlanContext) -> bool:
        """Whether the call is asked for."""
        site = context.site
        if site.branch == "unconditional":
            return False
        if self.meet is not None:
            self.meet(context)
        return site.step in self.steps and (self.layers is None or site.layer in self.layers)

    def observe(self, seen: Observation) -> None:
        """Hand it on."""
        self.take(seen)

    def select(self, given: SelectionInput) -> Tensor:
        """Everything."""
        return torch.ones(given.shape, dtype=torch.bool, device=given.q.device)

    def method(self, num_steps: int) -> SparseMethod:
        """The composition to attach: dense at all ``num_steps`` steps."""
        return SparseMethod("capture", self, schedule=Schedule(num_steps, min_tokens=0))


def capture_calls(
    pipe: Any, call: Mapping[str, Any], *, seed: int, steps: Collection[int]
) -> list[CapturedCall]:
    """Run a pipeline densely and keep the attention calls of some steps, see :class:`Watch`.

    Args:
        pipe: a diffusers pipeline.
        call: keyword arguments of its ``__call__``, ``num_inference_steps`` among them.
        seed: of the start noise.
        steps: which steps, from 0.

    Returns:
        By step, then by layer.
    """
    calls: list[CapturedCall] = []

    def keep(seen: Observation) -> None:
        context = seen.context
        tensors = (x.clone() for x in (seen.q, seen.k, seen.v, seen.out, seen.lse))
        calls.append(CapturedCall(context.site, context.layout, context.scale, context.num_layers, *tensors))

    watch = Watch(keep, frozenset(steps))
    pipe.set_progress_bar_config(disable=True)
    with attached(pipe, watch.method(call["num_inference_steps"])), torch.no_grad():
        pipe(**call, generator=torch.Generator("cpu").manual_seed(seed), output_type="latent")
    return calls


def context_of(method: SparseMethod, call: CapturedCall, state: LayerState) -> PlanContext:
    """The context in which a method meets a captured call, with what it carries there."""
    state.match(call.layout, call.q.shape[0], call.q.shape[2])
    return method.context(
        call.layout,
        call.site,
        state,
        head_dim=call.q.shape[-1],
        scale=call.scale,
        num_layers=call.num_layers,
    )


def figures_by_layer(method: SparseMethod, calls: Sequence[CapturedCall]) -> list[CallFigures]:
    """Attend to captured calls by a method, each as if all before it had been dense.

    The last captured step is measured. Earlier ones are there to be learnt from: the method's parts observe
    the one before, however many steps lie between, or plan at them, so that what they carry is at hand. The
    guards of the method are left out of account.

    Args:
        method: the composition to measure.
        calls: from :func:`capture_calls`.

    Returns:
        One entry per layer.
    """
    steps = sorted({call.site.step for call in calls})
    last, guard = steps[-1], range(steps[-2] + 1) if len(steps) > 1 else ()
    schedule = replace(method.schedule, dense_steps=guard, dense_layers=(), min_tokens=0)
    method = replace(method, schedule=schedule)
    states: dict[tuple[str, int], LayerState] = {}
    figures = []
    for call in sorted(calls, key=lambda call: call.site.step):
        state = states.setdefault((call.site.transformer, call.site.layer), LayerState())
        context = context_of(method, call, state)
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
