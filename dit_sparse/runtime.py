"""What a handle keeps while it is attached: method, state, records; and the decision sparse or dense per
call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import PlanContext
from dit_sparse.engine import SparseMethod, observed_attention, sparse_attention
from dit_sparse.layout import AttentionPlan, Site, SiteRecord, TokenLayout
from dit_sparse.state import State

PLANNED = ("dense_step", "dense_layer", "min_tokens", "observed")
"""Reasons to run dense that the schedule or the method asked for; any other is a fallback."""

FALLBACKS = {
    "gradients": "gradients are recorded, which sparse attention has none of: run under torch.no_grad()",
    "attention_mask": "an attention mask that is not plain text padding was passed",
    "token_count": "the sequence does not hold the tokens that the model's inputs announce",
    "parallelism": "context parallelism is enabled for this model",
}


@dataclass(frozen=True)
class Call:
    """One attention call: where it is, its tokens, and what dense attention would be.

    Args:
        site, layout: where, and the token grid with the padded text length.
        num_layers: self-attention layers of the transformer.
        valid_text: valid text tokens of every sample when the model pads its text at the tail, else None.
        dense: computes what the stock processor would have.
        scale: softmax scale or None.
        obstacle: None, or a key of :data:`FALLBACKS`.
    """

    site: Site
    layout: TokenLayout
    num_layers: int
    valid_text: tuple[int, ...] | None
    dense: Callable[[], Tensor]
    scale: float | None
    obstacle: str | None


@dataclass(frozen=True)
class _Part:
    """Samples of a call that are attended together, their live tokens (None for all), and their context."""

    samples: slice
    tokens: slice | None
    context: PlanContext


class Runtime:
    """Runs attention calls for one handle.

    Args:
        method: the composition to run.
        impl: kernel, see :func:`dit_sparse.kernels.block_sparse_attention`.
        strict: raise instead of falling back to dense attention.
        state: shared with the other transformers of a pipeline; its own if None.
    """

    def __init__(
        self, method: SparseMethod, impl: str = "auto", strict: bool = False, state: State | None = None
    ) -> None:
        self.method = method
        self.impl = impl
        self.strict = strict
        self.state = State() if state is None else state
        self.records: list[SiteRecord] = []
        # For measurements: told where the stages of a sparse call end, and shown every sparse call's inputs.
        self.recorder: Callable[[str], None] | None = None
        self.watch: Callable[[Tensor, Tensor, AttentionPlan, PlanContext], None] | None = None

    def new_generation(self) -> None:
        """Forget everything that belongs to the previous generation."""
        self.state.reset()
        self.records.clear()

    def run(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """Attention of one call ``[B, N, H, D]``, sparse where the schedule and the inputs allow it.

        Raises:
            RuntimeError: with ``strict``, where only dense attention can serve the call.
        """
        obstacle = call.obstacle
        if obstacle is None and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            obstacle = "gradients"
        if obstacle is None and q.shape[1] != call.layout.num_tokens:
            obstacle = "token_count"
        schedule = self.method.schedule
        planned = schedule.dense_reason(call.site, call.layout, call.num_layers)
        # A layer that is never sparse has nothing to learn for in the guard either.
        if obstacle is not None or schedule.never_sparse(call.site.layer, call.layout, call.num_layers):
            if planned is None:
                self.fall_back(call.site, obstacle or "")
            else:
                self.records.append(SiteRecord(call.site, 1.0, planned, "dense"))
            return call.dense()
        parts = self._parts(q, call)
        observed = any(p.wants(part.context) for p in self.method.observers for part in parts)
        if planned is not None and not observed:
            self.records.append(SiteRecord(call.site, 1.0, planned, "dense"))
            return call.dense()
        reason = planned or ("observed" if observed else None)
        if parts[0].tokens is None:
            return self._attend(q, k, v, parts[0].context, reason)
        out = torch.zeros_like(q)  # text padding is trimmed; no later layer reads its rows
        for part in parts:
            live = (part.samples, part.tokens)
            out[live] = self._attend(q[live], k[live], v[live], part.context, reason)
        return out

    def _parts(self, q: Tensor, call: Call) -> list[_Part]:
        """The call as a whole, or cut into samples of one length each where its text is padded."""
        layout, valid = call.layout, call.valid_text
        if valid is None or set(valid) == {layout.text_tokens}:
            return [_Part(slice(None), None, self._context(q, q.shape[0], layout, call, 0))]
        if len(set(valid)) == 1:
            groups = [(0, slice(None), q.shape[0])]
        else:
            groups = [(i, slice(i, i + 1), 1) for i in range(len(valid))]
        parts = []
        for sample, rows, batch in groups:
            text = valid[sample]
            live = replace(layout, text_tokens=text, text_position="last" if text else "none")
            context = self._context(q, batch, live, call, sample)
            parts.append(_Part(rows, slice(0, live.num_tokens), context))
        return parts

    def _context(self, q: Tensor, batch: int, layout: TokenLayout, call: Call, sample: int) -> PlanContext:
        shared = replace(call.site, branch="batched") if self.method.share_branches else call.site
        # Padded text is trimmed: branches that share a state can differ in length, and learn apart then.
        group = () if call.valid_text is None else (sample, batch, layout.text_tokens)
        state = self.state.layer(shared, group)
        state.match(layout, batch, q.shape[2])
        return self.method.context(
            layout, call.site, state, head_dim=q.shape[-1], scale=call.scale, num_layers=call.num_layers
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, context: PlanContext, reason: str | None) -> Tensor:
        """Sparse, or observed where there is a ``reason`` to be dense."""
        density: Tensor | float = 1.0
        heads: Tensor | None = None
        variable = False
        if reason is None:
            if self.recorder is not None:
                context = replace(context, recorder=self.recorder)
            out, plan = sparse_attention(q, k, v, method=self.method, context=context, impl=self.impl)
            density, heads = plan.density, plan.block_map.head_density()
            if self.watch is not None:
                self.watch(q, k, plan, context)
            variable = isinstance(plan.block_map, kernels.VariableBlocks)
        else:
            out = observed_attention(q, k, v, method=self.method, context=context, impl=self.impl)
        backend = "variable" if variable else self._backend(q, context)
        self.records.append(SiteRecord(context.site, density, reason, backend, heads))
        return out

    def fall_back(self, site: Site, obstacle: str) -> None:
        """Take note of a dense call that the schedule did not ask for.

        Raises:
            RuntimeError: with ``strict``.
        """
        if self.strict:
            raise RuntimeError(
                f"{site} cannot run sparse: {FALLBACKS[obstacle]}; pass strict=False to run it dense"
            )
        self.records.append(SiteRecord(site, 1.0, obstacle, "dense"))

    def _backend(self, q: Tensor, context: PlanContext) -> str:
        if self.impl != "auto":
            return self.impl
        precision = self.method.precision_at(context)
        return kernels.explain_backend(q.device, q.dtype, q.shape[-1], context.block_size, precision)[0]
