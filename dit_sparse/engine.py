"""The engine: schedule -> plan -> permute -> attend -> restore, for one attention call at one site."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.corrections import Correction, CorrectionInput
from dit_sparse.layout import AttentionPlan, BlockMap, Site, TokenLayout
from dit_sparse.orderings import Ordering, PlanContext, Raster
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
    """

    name: str
    selector: Selector
    ordering: Ordering = field(default_factory=Raster)
    correction: Correction | None = None
    schedule: Schedule = field(default_factory=Schedule)
    block_size: int | str = "auto"

    def __post_init__(self) -> None:
        size = self.block_size
        if size != "auto" and (not isinstance(size, int) or size < 1):
            raise ValueError(
                f"block_size must be 'auto' or a whole number >= 1 (fast: 64, 128), got {size!r}"
            )

    def blocks_for(self, num_tokens: int) -> tuple[int, int]:
        """(query block, key block) in tokens for a sequence of this length."""
        if isinstance(self.block_size, int):
            return (self.block_size, self.block_size)
        size = next(block for length, block in AUTO_BLOCKS if num_tokens >= length)
        return (size, size)


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    method: SparseMethod,
    layout: TokenLayout,
    site: Site,
    state: LayerState,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Tensor, AttentionPlan]:
    """Attend sparsely at one site.

    Args:
        q, k, v: ``[B, N, H, D]`` in the model's own token order, after RoPE.
        method: the composition to run.
        layout: token grid and text run; ``layout.num_tokens`` must be N.
        site: layer, step, branch.
        state: carried values of this layer and branch; read and written.
        scale: softmax scale, 1/sqrt(D) by default.
        impl: kernel to use, see :func:`dit_sparse.kernels.block_sparse_attention`.

    Returns:
        ``(out, plan)``: out is ``[B, N, H, D]`` in the model's token order and q's dtype.

    Raises:
        ValueError: if the tensors do not fit the layout.
    """
    if q.shape[1] != layout.num_tokens or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit self-attention over "
            f"{layout.num_tokens} tokens ({layout})"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state.match(layout, q.shape[0], q.shape[2])
    interval = method.schedule.refresh_interval
    if state.plan is not None and 0 <= site.step - state.plan_step < interval:
        plan = state.plan
        reordered = _Reordered(
            plan, plan.block_map.unpack(), _permute(q, plan.q_order), _permute(k, plan.kv_order)
        )
    else:
        context = PlanContext(layout, site, scale, method.blocks_for(layout.num_tokens), state)
        reordered = _make_plan(q, k, method, context)
        # A plan that no later step would reuse is not kept: at 720p its orders are tens of megabytes per
        # layer.
        state.plan, state.plan_step = (reordered.plan if interval > 1 else None), site.step
    v_sorted = _permute(v, reordered.plan.kv_order)
    out = _attend(reordered, v_sorted, method.correction, scale, impl)
    q_order = reordered.plan.q_order
    return (out if q_order is None else kernels.restore_rows(out, q_order)), reordered.plan


@dataclass(frozen=True)
class _Reordered:
    """A plan with what was made on the way: the unpacked map and the reordered q and k ``[B, N, H, D]``."""

    plan: AttentionPlan
    block_map: BlockMap
    q: Tensor
    k: Tensor


def _attend(
    reordered: _Reordered, v: Tensor, correction: Correction | None, scale: float, impl: str
) -> Tensor:
    """Sparse attention in the reordered sequence, corrected: ``[B, N, H, D]``."""
    result = kernels.block_sparse_attention(
        reordered.q,
        reordered.k,
        v,
        reordered.block_map,
        scale=scale,
        return_lse=correction is not None,
        impl=impl,
    )
    if correction is None:
        assert isinstance(result, Tensor)
        return result
    out, lse = result
    return correction.apply(
        CorrectionInput(reordered.q, reordered.k, v, out, lse, reordered.block_map, scale)
    )


def _make_plan(q: Tensor, k: Tensor, method: SparseMethod, context: PlanContext) -> _Reordered:
    """Order the tokens, then select blocks in the reordered sequence."""
    layout = context.layout
    video = slice(layout.video_start, layout.video_start + layout.video_tokens)
    order = method.ordering.order(q[:, video], k[:, video], context)
    shared = order.kv is order.q
    q_order = _with_text(order.q, layout)
    kv_order = q_order if shared else _with_text(order.kv, layout)
    q_sorted, k_sorted = _permute(q, q_order), _permute(k, kv_order)
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
    mask = method.selector.select(SelectionInput(q_sorted, k_sorted, order, forced, video_start, context))
    block_map = BlockMap.from_mask(mask, layout.num_tokens, layout.num_tokens, context.block_size)
    plan = AttentionPlan(q_order, kv_order, block_map.pack(), block_map.density())
    return _Reordered(plan, block_map, q_sorted, k_sorted)


def _with_text(order: Tensor | None, layout: TokenLayout) -> Tensor | None:
    """Extend an order of the video tokens to all N tokens: video first, then the text in its own order."""
    if order is None or layout.text_tokens == 0:
        return order
    text = torch.arange(layout.text_start, layout.text_start + layout.text_tokens, device=order.device)
    return torch.cat([order + layout.video_start, text.expand(*order.shape[:-1], -1)], dim=-1)


def _permute(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else kernels.permute_rows(x, order)
