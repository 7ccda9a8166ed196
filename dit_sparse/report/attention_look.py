"""One attention call turned into maps and figures, with the method's own choice of blocks in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dit_sparse.engine import SparseMethod, observed_attention, uncorrected_attention
from dit_sparse.layout import AttentionPlan, TokenLayout
from dit_sparse.methods import MethodConfig, ModelInfo, make_method
from dit_sparse.orderings import Cubes
from dit_sparse.report.attention_maps import (
    block_map_of,
    heads_of,
    kept_density,
    kept_share,
    oracle_recall,
    order_of,
)
from dit_sparse.report.attention_points import Point, patterns, point_rows
from dit_sparse.report.attention_schema import Curve, Curves, HeadFigures, PointFigures
from dit_sparse.report.capture import CapturedCall, context_of
from dit_sparse.selectors import Window
from dit_sparse.state import LayerState

DENSITIES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Densities of the recall curves; the method's own setting stands beside them."""


@dataclass(frozen=True)
class HeadMaps:
    """What is drawn of one head at one step and layer, on the CPU.

    Args:
        figures: its numbers.
        raster: float32 ``[nQ, nK]``, exact mass in the model's own order; rows sum to 1.
        ordered: the same in the method's order; None where it keeps the model's.
        kept: float16 ``[nQ, nK]`` in [0, 1], share of every pair that the method keeps, in its order.
        points: float32 ``[P, T, H, W]``, share of every video token in the softmax of the query points.
    """

    figures: HeadFigures
    raster: Tensor
    ordered: Tensor | None
    kept: Tensor
    points: Tensor

    @property
    def in_order(self) -> Tensor:
        """Mass in the order in which ``kept`` is given."""
        return self.raster if self.ordered is None else self.ordered


@dataclass(frozen=True)
class _Outcome:
    """Figures of what was computed, one entry per head looked at."""

    density: list[float]
    recall: list[float]
    error: list[float]


class Looker:
    """Analyses dense calls, one sample each, and lets a method plan at them.

    The method plans from what it finds at the call, without guards and corrections. What it carries
    (centroids, observed masks, budgets) comes from the calls looked at before, one state per density; where
    it has to learn from dense attention first, it learns at the first call of the layer that is looked at.

    Args:
        config: of the method.
        heads: which heads to look at; the method plans for all.
        family, head_dim: of the model, see :class:`~dit_sparse.methods.ModelInfo`.
    """

    def __init__(self, config: MethodConfig, heads: Sequence[int], family: str, head_dim: int) -> None:
        self.config, self.heads, self.family, self.head_dim = config, list(heads), family, head_dim
        self._states: dict[tuple[object, ...], LayerState] = {}
        self._shared: dict[tuple[object, ...], dict[str, Any]] = {}

    def block_size(self, layout: TokenLayout, num_layers: int) -> tuple[int, int]:
        """(query, key) block that the method takes for calls of this layout."""
        built = self.config.build(ModelInfo(self.family, num_layers, self.head_dim))
        return built.blocks_for(layout.num_tokens)

    def look(self, call: CapturedCall, points: Sequence[Point]) -> list[HeadMaps]:
        """Maps and figures of the heads asked for.

        Args:
            call: one sample with all its heads.
            points: query tokens.
        """
        built = self._built(self.config, call)
        block = built.blocks_for(call.layout.num_tokens)
        part = heads_of(call, self.heads)
        plan, own = self._attend(built, call, self.heads, None)
        orders = [order_of(order, self.heads) for order in (plan.q_order, plan.kv_order)]
        raster = block_map_of(part, block)
        ordered = None if orders == [None, None] else block_map_of(part, block, *orders)
        kept = kept_share(plan.block_map, self.heads, block).half()
        video, text = point_rows(part, points)
        curves = self._curves(call, part, raster, raster if ordered is None else ordered, block[0])
        site, found = call.site, []
        for i, (head, pattern) in enumerate(zip(self.heads, patterns(part), strict=True)):
            figures = HeadFigures(
                step=site.step,
                layer=site.layer,
                head=head,
                transformer=site.transformer,
                dense_reason=built.schedule.dense_reason(site, call.layout, call.num_layers),
                density=own.density[i],
                recall=own.recall[i],
                error=own.error[i],
                pattern=pattern,
                curves=curves[i],
                points=[
                    _point(at, share, float(words)) for at, share, words in zip(points, video[i], text[i])
                ],
            )
            found.append(
                HeadMaps(figures, raster[i], None if ordered is None else ordered[i], kept[i], video[i])
            )
        return found

    def _built(self, config: MethodConfig, call: CapturedCall) -> SparseMethod:
        return config.build(ModelInfo(self.family, call.num_layers, self.head_dim))

    def _attend(
        self, method: SparseMethod, call: CapturedCall, heads: Sequence[int], label: object
    ) -> tuple[AttentionPlan, _Outcome]:
        """What a method makes of a call, with what it carries under ``label``."""
        # An interval of two steps makes the engine leave its plan in the state, where it can be looked at.
        schedule = replace(method.schedule, dense_steps=0, dense_layers=(), min_tokens=0, refresh_interval=2)
        method = replace(method, schedule=schedule, correction=None)
        where = (label, call.site.transformer)
        shared = self._shared.setdefault(where, {})
        state = self._states.setdefault((*where, call.site.layer), LayerState(shared=shared))
        context = context_of(method, call, state)
        if any(part.wants(context) for part in method.observers):
            observed_attention(call.q, call.k, call.v, method=method, context=context)
        out, lse = uncorrected_attention(call.q, call.k, call.v, method=method, context=context)
        assert state.plan is not None
        plan, state.plan = state.plan.unpacked(), None
        dense, sparse = (x[0].float().transpose(0, 1).flatten(1) for x in (call.out, out))
        missed = (sparse - dense).norm(dim=-1) / dense.norm(dim=-1)
        recall = torch.exp(lse - call.lse).mean(dim=-1)[0].clamp(max=1.0)  # but for rounding
        return plan, _Outcome(
            kept_density(plan.block_map, heads), recall[list(heads)].tolist(), missed[list(heads)].tolist()
        )

    def _curves(
        self, call: CapturedCall, part: CapturedCall, raster: Tensor, ordered: Tensor, block: int
    ) -> list[Curves]:
        """Recall over density of the heads asked for."""
        tokens, all_of_part = call.layout.num_tokens, range(part.q.shape[2])
        best, best_raster = (oracle_recall(x, DENSITIES, tokens, block) for x in (ordered, raster))
        method, window = [], []
        for density in DENSITIES:
            built = self._built(make_method(self.config, density=density), call)
            method.append(self._attend(built, call, self.heads, density)[1])
            same = uniform_window(density, block)
            window.append(self._attend(same, part, all_of_part, ("window", density))[1])
        return [
            Curves(
                oracle=Curve(density=list(DENSITIES), recall=best[i].tolist()),
                oracle_raster=Curve(density=list(DENSITIES), recall=best_raster[i].tolist()),
                method=_curve(method, i),
                window=_curve(window, i),
            )
            for i in all_of_part
        ]


def uniform_window(density: float, block: int) -> SparseMethod:
    """One space-time window for all heads, of the grid's proportions, in the most compact blocks."""
    return SparseMethod("window", Window((1.0, 1.0, 1.0), density), Cubes(), block_size=block)


def _curve(outcomes: Sequence[_Outcome], head: int) -> Curve:
    return Curve(
        density=[outcome.density[head] for outcome in outcomes],
        recall=[outcome.recall[head] for outcome in outcomes],
    )


def _point(query: Point, share: Tensor, text: float) -> PointFigures:
    """Figures of one softmax row; ``share`` is ``[T, H, W]``."""
    t, h, w = (int(x) for x in torch.unravel_index(share.argmax(), share.shape))
    return PointFigures(
        query=query,
        peak=(t, h, w),
        peak_share=float(share[t, h, w]),
        frames=share.sum(dim=(1, 2)).tolist(),
        text=text,
    )
