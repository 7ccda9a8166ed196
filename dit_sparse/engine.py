"""The engine: plan -> permute -> attend -> correct -> restore, for one attention call at one site."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import Observation, Observer, PlanContext, PrecisionRule
from dit_sparse.corrections import Correction, CorrectionInput
from dit_sparse.kernels import VariableBlocks
from dit_sparse.layout import AttentionPlan, BlockMap, Site, TokenLayout
from dit_sparse.orderings import Ordering, Raster, with_text
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import SelectionInput, Selector, forced_pairs
from dit_sparse.state import LayerState

AUTO_BLOCKS = ((8192, 128), (2048, 64), (0, 32))
"""(tokens, block): ``block_size="auto"`` takes the block of the first row whose length is reached. 128 is
what the GPU kernels are fastest at; short sequences, where a map of 128-blocks has few entries, get
resolution instead."""


@dataclass(frozen=True)
class SparseMethod:
    """A point in the space of methods: one choice per axis. Immutable; any mix is legal.

    Args:
        name: shown in summaries and reports.
        selector: which block pairs are computed.
        ordering: in which order tokens sit.
        correction: how what was skipped is made good; None for not at all.
        schedule: when the sparse path runs.
        block_size: tokens per block on both axes, or "auto" by sequence length.
        share_branches: both guidance branches carry one state: what is learnt in the first to run serves the
            other.
        precision: arithmetic of the sparse attention, see
            :func:`dit_sparse.kernels.block_sparse_attention`; or a rule that gives it call by call.
    """

    name: str
    selector: Selector
    ordering: Ordering = field(default_factory=Raster)
    correction: Correction | None = None
    schedule: Schedule = field(default_factory=Schedule)
    block_size: int | str = "auto"
    share_branches: bool = False
    precision: str | PrecisionRule = "native"

    def __post_init__(self) -> None:
        for name in self.precisions:
            if name not in kernels.PRECISIONS:
                raise ValueError(f"precision must be one of {kernels.PRECISIONS}, got {name!r}")
        size = self.block_size
        if size != "auto" and (not isinstance(size, int) or size < 1):
            raise ValueError(
                f"block_size must be 'auto' or a whole number >= 1 (fast: 64, 128), got {size!r}"
            )

    @property
    def precisions(self) -> tuple[str, ...]:
        """Every precision that calls may run in."""
        return (self.precision,) if isinstance(self.precision, str) else self.precision.names

    def precision_at(self, context: PlanContext) -> str:
        """The precision of one call."""
        return self.precision if isinstance(self.precision, str) else self.precision.at(context)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """The parts that learn from dense attention."""
        parts: tuple[object, ...] = (self.ordering, self.selector, self.correction)
        return tuple(part for part in parts if isinstance(part, Observer))

    def context(
        self,
        layout: TokenLayout,
        site: Site,
        state: LayerState,
        *,
        head_dim: int,
        scale: float | None = None,
        num_layers: int = 1,
    ) -> PlanContext:
        """What the parts may look at in one call.

        Args:
            layout: token grid and text run.
            site: layer, step, branch.
            state: carried values of this layer and branch.
            head_dim: D.
            scale: softmax scale; 1/sqrt(D) when None.
            num_layers: self-attention layers of the transformer.
        """
        return PlanContext(
            layout,
            site,
            head_dim**-0.5 if scale is None else scale,
            self.blocks_for(layout.num_tokens),
            state,
            self.schedule.first_sparse_step(site.num_steps),
            num_layers,
        )

    def blocks_for(self, num_tokens: int) -> tuple[int, int]:
        """(query block, key block) in tokens for a sequence of this length."""
        if isinstance(self.block_size, int):
            return (self.block_size, self.block_size)
        size = next(block for length, block in AUTO_BLOCKS if num_tokens >= length)
        return (size, size)


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, *, method: SparseMethod, context: PlanContext, impl: str = "auto"
) -> tuple[Tensor, AttentionPlan]:
    """Attend sparsely at one site.

    Args:
        q, k, v: ``[B, N, H, D]`` in the model's own token order, after RoPE.
        method: the composition to run.
        context: see :meth:`SparseMethod.context`; ``context.layout.num_tokens`` must be N.
        impl: kernel to use, see :func:`dit_sparse.kernels.block_sparse_attention`.

    Returns:
        ``(out, plan)``: out is ``[B, N, H, D]`` in the model's token order and q's dtype.

    Raises:
        ValueError: if the tensors do not fit the layout.
    """
    call, precision = _reordered(q, k, v, method, context), method.precision_at(context)
    if method.correction is None:
        out = call.attend(precision, impl)
        context.ended("attend")
    else:
        given = call.to_correct(precision, impl, context)
        context.ended("attend")
        out = method.correction.apply(given)
        context.ended("correct")
    out = _restored(out, call.plan.q_order)
    context.ended("restore")
    return out, call.plan


def observed_attention(
    q: Tensor, k: Tensor, v: Tensor, *, method: SparseMethod, context: PlanContext, impl: str = "auto"
) -> Tensor:
    """Attend densely at one site and let the parts of the method that ask for it learn from that.

    Takes what :func:`sparse_attention` takes. A plan made before is dropped: what the parts learn may change
    it.

    Returns:
        Dense attention ``[B, N, H, D]``.
    """
    out, lse = kernels.dense_attention(q, k, v, scale=context.scale, impl=impl)

    def sparse() -> tuple[Tensor, Tensor]:
        return uncorrected_attention(q, k, v, method=method, context=context, impl=impl)

    def problem() -> SelectionInput:
        return _posed(q, k, v, method, context)[0]

    def to_correct() -> CorrectionInput:
        return _reordered(q, k, v, method, context).to_correct(method.precision_at(context), impl, context)

    context.state.match(context.layout, q.shape[0], q.shape[2])
    context.state.plan = None
    for part in method.observers:
        if part.wants(context):
            part.observe(Observation(q, k, v, out, lse, context, sparse, problem, to_correct))
    context.state.plan = None
    return out


def uncorrected_attention(
    q: Tensor, k: Tensor, v: Tensor, *, method: SparseMethod, context: PlanContext, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """What :func:`sparse_attention` computes before its correction, and the log-sum-exp over what it kept.

    Takes what :func:`sparse_attention` takes.

    Returns:
        ``[B, N, H, D]`` and float32 ``[B, H, N]``, in the model's token order.
    """
    call = _reordered(q, k, v, method, context)
    given, order = call.to_correct(method.precision_at(context), impl, context), call.plan.q_order
    return _restored(given.out, order), given.lse if order is None else _unsorted(given.lse, order)


def permuted(
    q: Tensor, k: Tensor, v: Tensor, q_order: Tensor | None, kv_order: Tensor | None
) -> tuple[Tensor, ...]:
    """q, k and v ``[B, N, H, D]`` in the orders of a plan; those that share one are moved together."""
    if q_order is kv_order:
        return (q, k, v) if q_order is None else kernels.permute_together((q, k, v), q_order)
    queries = q if q_order is None else kernels.permute_rows(q, q_order)
    return queries, *((k, v) if kv_order is None else kernels.permute_together((k, v), kv_order))


@dataclass(frozen=True)
class _Call:
    """One attention call in the order of its plan: q, k, v ``[B, N, H, D]``."""

    plan: AttentionPlan
    block_map: BlockMap | VariableBlocks
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float

    def attend(self, precision: str, impl: str) -> Tensor:
        out = kernels.block_sparse_attention(
            self.q, self.k, self.v, self.block_map, scale=self.scale, impl=impl, precision=precision
        )
        assert isinstance(out, Tensor)
        return out

    def to_correct(self, precision: str, impl: str, context: PlanContext) -> CorrectionInput:
        qkv = (self.q, self.k, self.v)
        out, lse = kernels.block_sparse_attention(
            *qkv, self.block_map, scale=self.scale, return_lse=True, impl=impl, precision=precision
        )
        return CorrectionInput(*qkv, out, lse, self.block_map, self.scale, self.plan.q_order, context)


def _reordered(q: Tensor, k: Tensor, v: Tensor, method: SparseMethod, context: PlanContext) -> _Call:
    """The call in the order of the carried plan, or of a new one."""
    layout, state = context.layout, context.state
    if q.shape[1] != layout.num_tokens or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit self-attention over "
            f"{layout.num_tokens} tokens ({layout})"
        )
    state.match(layout, q.shape[0], q.shape[2])
    interval = method.schedule.refresh_interval
    if state.plan is not None and 0 <= context.site.step - state.plan_step < interval:
        plan = state.plan.unpacked()
        context.ended("select")
        q, k, v = permuted(q, k, v, plan.q_order, plan.kv_order)
        context.ended("permute")
        return _Call(plan, plan.block_map, q, k, v, context.scale)
    call = _planned(q, k, v, method, context)
    # A plan that no later step would reuse is not kept: at 720p its orders are tens of megabytes per layer.
    state.plan, state.plan_step = (call.plan.packed() if interval > 1 else None), context.site.step
    context.ended("select")
    return call


def _planned(q: Tensor, k: Tensor, v: Tensor, method: SparseMethod, context: PlanContext) -> _Call:
    """Order the tokens, then select blocks in the reordered sequence."""
    given, q_order, kv_order = _posed(q, k, v, method, context)
    chosen, tokens = method.selector.select(given), context.layout.num_tokens
    block_map = (
        chosen
        if isinstance(chosen, VariableBlocks)
        else BlockMap.from_mask(chosen, tokens, tokens, context.block_size)
    )
    plan = AttentionPlan(q_order, kv_order, block_map, block_map.density())
    return _Call(plan, block_map, given.q, given.k, given.v, context.scale)


def _posed(
    q: Tensor, k: Tensor, v: Tensor, method: SparseMethod, context: PlanContext
) -> tuple[SelectionInput, Tensor | None, Tensor | None]:
    """The selection problem in the reordered sequence, and the orders of all N queries and keys."""
    layout = context.layout
    video = slice(layout.video_start, layout.video_start + layout.video_tokens)
    order = method.ordering.order(q[:, video], k[:, video], context)
    context.ended("order")
    shared = order.kv is order.q
    q_order = with_text(order.q, layout)
    kv_order = q_order if shared else with_text(order.kv, layout)
    q_sorted, k_sorted, v_sorted = permuted(q, k, v, q_order, kv_order)
    context.ended("permute")
    reordered = q_order is not None
    forced = forced_pairs(
        layout.num_tokens,
        layout.video_tokens if reordered else layout.text_start,
        layout.text_tokens,
        context.block_size,
        q.device,
        diagonal=shared,  # with q and k ordered apart the diagonal means nothing
    )
    video_start = 0 if reordered else layout.video_start
    given = SelectionInput(q_sorted, k_sorted, v_sorted, order, forced, video_start, context)
    return given, q_order, kv_order


def _restored(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else kernels.restore_rows(x, order)


def _unsorted(rows: Tensor, order: Tensor) -> Tensor:
    """``[B, H, N]`` values per row, back in the model's order."""
    return torch.empty_like(rows).scatter_(-1, order.expand(rows.shape), rows)
