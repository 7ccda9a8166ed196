"""How much of the true softmax the kept blocks hold, estimated from a few query rows of every sparse call.

The rows are attended to all keys, which costs as much as those rows of dense attention and takes memory: it
is done in a run of its own, from the same noise and with the same plans, so that no timed run carries it.
Rows of text are left out: they keep every block by construction and would only flatter the figure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_sparse import kernels
from dit_sparse.context import PlanContext
from dit_sparse.kernels.sampling import sampled_attention
from dit_sparse.kernels.variable_blocks import VariableBlocks, block_of_tokens
from dit_sparse.layout import AttentionPlan, BlockMap, Site, TokenLayout
from dit_sparse.report.schema import Recall, RecallMap, WorstRecall
from dit_sparse.stats import fetched

ROWS = 32
WORST_LAYERS = 5
NOT_ASKED = "it was not asked for: --recall (in Python recall=True) estimates it in one more sparse run"
NOTHING_SPARSE = "no call ran sparse"
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, spread evenly


@dataclass(frozen=True)
class CallRecall:
    """Recall of one sparse call by head: float32 ``[H]``, mean over samples and rows."""

    site: Site
    heads: Tensor


class RecallProbe:
    """Watches the sparse calls of one run.

    Args:
        rows: query rows per call and head, >= 1; fewer where a call has fewer video tokens.
    """

    def __init__(self, rows: int = ROWS) -> None:
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        self.rows = rows
        self._calls: list[CallRecall] = []

    @contextmanager
    def attached(self, handle: Any) -> Iterator[None]:
        """Watch what runs through this handle while the context is open."""
        for runtime in handle.runtimes:
            runtime.watch = self._see
        try:
            yield
        finally:
            for runtime in handle.runtimes:
                runtime.watch = None

    def _see(self, q: Tensor, k: Tensor, plan: AttentionPlan, context: PlanContext) -> None:
        positions = sampled_positions(
            context.layout, self.rows, len(self._calls), reordered=plan.q_order is not None
        ).to(q.device)
        heads = plan_recall(q, k, plan, positions, context.scale)
        self._calls.append(CallRecall(context.site, heads))

    def calls(self) -> list[CallRecall]:
        """What was seen, on the CPU."""
        heads = fetched([call.heads for call in self._calls])
        return [CallRecall(call.site, values) for call, values in zip(self._calls, heads)]


def sampled_positions(layout: TokenLayout, rows: int, call: int, *, reordered: bool) -> Tensor:
    """Positions of sampled video queries in the plan's order, int64 ``[R]``: one in each of R stretches.

    Clusters and tiles are stretches of that order, so that all get their share. Where in the stretches the
    rows lie changes from call to call.
    """
    rows = min(rows, layout.video_tokens)
    start = 0 if reordered else layout.video_start
    inside = (torch.arange(rows, dtype=torch.float64) + (call * GOLDEN) % 1.0) * (layout.video_tokens / rows)
    return start + inside.long().clamp(max=layout.video_tokens - 1)


@torch.no_grad()
def plan_recall(
    q: Tensor, k: Tensor, plan: AttentionPlan, positions: Tensor, scale: float | None = None
) -> Tensor:
    """Share of sampled rows' softmax over all keys that lies in the blocks which the plan keeps for them.

    Args:
        q, k: ``[B, N, H, D]`` in the model's order.
        plan: of the call.
        positions: int64 ``[R]``, rows in the plan's order.
        scale: factor on the logits; 1 / sqrt(D) when None.

    Returns:
        float32 ``[H]``, mean over samples and rows, in [0, 1].
    """
    rows = _rows(q, plan.q_order, positions)
    keys = k if plan.kv_order is None else kernels.permute_rows(k, plan.kv_order)
    blocks = plan.block_map
    if isinstance(blocks, VariableBlocks):
        return _variable_recall(rows, keys, blocks, positions, scale).mean(dim=(0, 2))
    return _fixed_recall(rows, keys, blocks, positions, scale).mean(dim=(0, 2))


def _rows(q: Tensor, order: Tensor | None, positions: Tensor) -> Tensor:
    """Queries ``[B, R, H, D]`` at positions of the reordered sequence."""
    if order is None:
        return q[:, positions]
    batch, _, heads, dim = q.shape
    tokens = order.expand(batch, heads, order.shape[-1])[..., positions].transpose(1, 2)
    return q.gather(1, tokens[..., None].expand(-1, -1, -1, dim))


def _fixed_recall(
    rows: Tensor, keys: Tensor, blocks: BlockMap, positions: Tensor, scale: float | None
) -> Tensor:
    """``[B, H, R]`` for blocks of one length."""
    mass = kernels.sampled_block_mass(rows, keys, blocks.block_size[1], scale)
    block = positions // blocks.block_size[0]
    indices, counts = blocks.indices[:, :, block].long(), blocks.counts[:, :, block]
    live = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    return (mass.gather(-1, indices) * live).sum(dim=-1)


def _variable_recall(
    rows: Tensor, keys: Tensor, blocks: VariableBlocks, positions: Tensor, scale: float | None
) -> Tensor:
    """``[B, H, R]`` for blocks of any length."""
    block = block_of_tokens(blocks.q_lengths, keys.shape[1])[..., positions]
    kept = blocks.mask.gather(2, block[..., None].expand(-1, -1, -1, blocks.mask.shape[-1]))
    key_block = block_of_tokens(blocks.kv_lengths, keys.shape[1])
    seen = kept.gather(-1, key_block[:, :, None].expand(-1, -1, kept.shape[2], -1))
    parts = [(share * seen[:, heads]).sum(dim=-1) for heads, share in sampled_attention(rows, keys, scale)]
    return torch.cat(parts, dim=1)


def recall_section(calls: Iterable[CallRecall], rows: int) -> Recall | None:
    """The report's recall section; None where no call was seen."""
    found: dict[str, list[CallRecall]] = defaultdict(list)
    for call in calls:
        found[call.site.transformer].append(call)
    if not found:
        return None
    everything = [float(call.heads.mean()) for group in found.values() for call in group]
    maps = [_recall_map(name, found[name]) for name in sorted(found)]
    worst = sorted((entry for made in maps for entry in _by_layer(made)), key=lambda entry: entry.mean)
    return Recall(
        rows=rows, mean=sum(everything) / len(everything), worst_layers=worst[:WORST_LAYERS], maps=maps
    )


def _recall_map(transformer: str, calls: list[CallRecall]) -> RecallMap:
    cells: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    by_layer: dict[int, list[Tensor]] = defaultdict(list)
    for call in calls:
        cells[call.site.layer, call.site.step].append(call.heads)
        by_layer[call.site.layer].append(call.heads)
    layers, steps = sorted(by_layer), sorted({step for _, step in cells})
    return RecallMap(
        transformer=transformer,
        layers=layers,
        steps=steps,
        by_step=[
            [float(_mean(cells[i, j]).mean()) if (i, j) in cells else None for j in steps] for i in layers
        ],
        by_head=[_mean(by_layer[layer]).tolist() for layer in layers],
    )


def _mean(heads: list[Tensor]) -> Tensor:
    return torch.stack(heads).double().mean(dim=0)


def _by_layer(made: RecallMap) -> Iterator[WorstRecall]:
    """Every layer with its worst head and worst step."""
    for layer, heads, row in zip(made.layers, made.by_head, made.by_step):
        steps = {step: value for step, value in zip(made.steps, row) if value is not None}
        worst_head = min(range(len(heads)), key=heads.__getitem__)
        worst_step = min(steps, key=steps.__getitem__)
        yield WorstRecall(
            transformer=made.transformer,
            layer=layer,
            mean=sum(heads) / len(heads),
            head=worst_head,
            head_recall=heads[worst_head],
            step=worst_step,
            step_recall=steps[worst_step],
        )
