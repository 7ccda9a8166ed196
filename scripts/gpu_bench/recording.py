"""Recorded engine calls: what ordering, selector and correction are really handed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from dit_sparse.context import PlanContext
from dit_sparse.corrections import CorrectionInput
from dit_sparse.engine import SparseMethod, sparse_attention
from dit_sparse.layout import AttentionPlan, Branch, Site, TokenLayout
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.orderings import Ordering, Raster, Tiles, TokenOrder
from dit_sparse.runtime import Call
from dit_sparse.schedule import Schedule
from dit_sparse.selectors import SelectionInput, Selector, TopK
from dit_sparse.selectors.scores import Score
from dit_sparse.state import LayerState
from gpu_bench.models import STEPS, Model

DENSITY = 0.25
KEEP = 1_000_000
"""A refresh interval that no run reaches."""
Tensors = tuple[Tensor, Tensor, Tensor]


def compositions(model: Model) -> dict[str, SparseMethod]:
    """svg2, draft, and orderings x scores with one budget per layer, none with a correction; all at
    :data:`DENSITY`, a plan at every step, no dense guard."""
    info = ModelInfo(model.family, model.layers, model.dim)
    always = {"dense_steps": 0, "dense_layers": (), "min_tokens": 0, "refresh_interval": 1}
    made = {name: make_method(name, density=DENSITY, **always).build(info) for name in ("svg2", "draft")}
    clusters = made["svg2"].ordering
    scores: tuple[Score, ...] = ("pooled", "mean_key", "centroid")
    orderings: dict[str, Ordering] = {"raster": Raster(), "tiles": Tiles(), "clusters": clusters}
    for name, ordering in orderings.items():
        for score in scores if name == "clusters" else scores[:2]:
            selector = TopK(DENSITY, "layer", score)
            made[f"{name}, {score}"] = SparseMethod(name, selector, ordering, schedule=Schedule())
    return made


class _OrderingTap:
    """Keeps what an ordering gave."""

    def __init__(self, part: Ordering) -> None:
        self.part = part

    def order(self, q: Tensor, k: Tensor, context: PlanContext) -> TokenOrder:
        self.given = (q, k, context)
        self.made = self.part.order(q, k, context)
        return self.made


class _SelectorTap:
    """Keeps what a selector was given and gave."""

    def __init__(self, part: Selector) -> None:
        self.part = part

    def select(self, given: SelectionInput) -> Tensor:
        self.given, self.made = given, self.part.select(given)
        return self.made


class _CorrectionTap:
    """Keeps what a correction is given."""

    def apply(self, given: CorrectionInput) -> Tensor:
        self.given = given
        return given.out


@dataclass(frozen=True)
class Recorded:
    """One engine call: what its parts were handed, and its plan."""

    ordering_given: tuple[Tensor, Tensor, PlanContext]
    order: TokenOrder
    selection: SelectionInput
    mask: Tensor
    correction: CorrectionInput
    plan: AttentionPlan


def record(method: SparseMethod, x: Tensors, layout: TokenLayout) -> Recorded:
    """The second of two calls, which has carried centroids where the ordering carries any."""
    ordering, selector, correction = (
        _OrderingTap(method.ordering),
        _SelectorTap(method.selector),
        _CorrectionTap(),
    )
    tapped = replace(method, ordering=ordering, selector=selector, correction=correction)
    state = LayerState()
    for step in range(2):
        _, plan = engine_call(tapped, x, layout, state, step)
    return Recorded(ordering.given, ordering.made, selector.given, selector.made, correction.given, plan)


def runtime_call(layout: TokenLayout, step: int, dense: Tensor, branch: Branch = "batched") -> Call:
    """A call of the first layer as the hooks hand it to the runtime; ``dense`` is its dense output."""
    return Call(Site(0, step, STEPS, branch), layout, 1, None, lambda: dense, None, None)


def engine_call(
    method: SparseMethod, x: Tensors, layout: TokenLayout, state: LayerState, step: int
) -> tuple[Tensor, AttentionPlan]:
    """The engine at one site."""
    context = method.context(layout, Site(0, step, STEPS), state, head_dim=x[0].shape[-1])
    return sparse_attention(*x, method=method, context=context)
