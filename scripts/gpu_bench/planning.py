"""What planning costs: every stage of a sparse attention call, timed on the inputs that it really gets.

One call of the engine is recorded (what the ordering, the selector and the correction are handed, and the
plan), then every stage runs alone on those records with the functions that the engine calls. The data are
smooth random fields over the grid plus noise (:func:`gpu_bench.models.smooth_qkv`), not pure noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from dit_sparse import kernels
from dit_sparse.corrections import PooledCompensation
from dit_sparse.engine import SparseMethod, permuted
from dit_sparse.layout import BlockMap, TokenLayout
from dit_sparse.orderings import Ordering, SemanticClusters
from dit_sparse.selectors import estimate_mass
from dit_sparse.state import LayerState
from gpu_bench.harness import Row, Settings, benchmark, error_note, fastest, measure_dense
from gpu_bench.models import STEPS, Model, chosen_models, smooth_qkv
from gpu_bench.recording import KEEP, Recorded, Tensors, compositions, engine_call, record

INTERVALS = (1, 5, 10)
"""Refresh intervals for which the cost per step is given."""
MAKE = ("cluster", "order", "score", "select", "map")
"""Stages of a new plan."""
MOVE = ("permute", "restore")
"""Stages of every call that count as planning too."""
STAGES = (*MAKE, "pack", "unpack", *MOVE, "attend", "compensate")
BUDGET_SHARE = 0.25
"""Of the usual time for a figure: there are hundreds of them."""

Run = Callable[[], object]


def planning_stages(method: SparseMethod, x: Tensors, seen: Recorded) -> dict[str, Run]:
    """The stages before and after attention, by name; "choose" is scoring and selecting in one."""
    stages: dict[str, Run] = {}
    q_video, k_video, _ = seen.ordering_given
    q_part, kv_part = seen.order.q_clusters, seen.order.kv_clusters
    if q_part is not None and kv_part is not None:
        assert isinstance(method.ordering, SemanticClusters)
        parts = ((q_video, q_part), (k_video, kv_part))

        def cluster(iterations: int, warm: bool) -> None:
            for tokens, part in parts:
                kernels.kmeans(
                    tokens,
                    part.centroids.shape[2],
                    centroids=part.centroids if warm else None,
                    iterations=iterations,
                )

        stages["cluster"] = lambda: cluster(method.ordering.iterations, True)  # type: ignore[attr-defined]
        stages["first cluster"] = lambda: cluster(method.ordering.first_iterations, False)  # type: ignore[attr-defined]
        stages["order"] = lambda: [kernels.sort_by_label(part.labels) for _, part in parts]
    else:
        stages["order"] = lambda: method.ordering.order(*seen.ordering_given)
    score = method.selector.score  # type: ignore[attr-defined]
    stages["score"] = lambda: estimate_mass(seen.selection, score)
    stages["choose"] = lambda: method.selector.select(seen.selection)
    old, plan = seen.plan.block_map, seen.plan
    stages["map"] = lambda: BlockMap.from_mask(
        seen.mask, old.num_queries, old.num_keys, old.block_size
    ).density()
    packed = plan.packed()
    stages["pack"], stages["unpack"] = plan.packed, packed.unpacked
    if plan.q_order is not None and plan.kv_order is not None:
        orders = (plan.q_order, plan.kv_order)
        stages["permute"] = lambda: permuted(*x, *orders)
        stages["restore"] = lambda: kernels.restore_rows(seen.correction.out, orders[0])
    return stages


def attention_stages(method: SparseMethod, x: Tensors, layout: TokenLayout, seen: Recorded) -> dict[str, Run]:
    """Attention, compensation, and whole calls of the engine with a new and with a carried plan."""
    given = seen.correction
    stages: dict[str, Run] = {
        "attend": lambda: kernels.block_sparse_attention(
            given.q,
            given.k,
            given.v,
            given.block_map,
            scale=given.scale,
            return_lse=method.correction is not None,
        )
    }
    if method.correction is not None:
        correction = method.correction
        stages["compensate"] = lambda: correction.apply(given)
    for name, interval in (("call", 1), ("call, plan carried", KEEP)):
        # Both begin where the centroids are carried: a first call has been made.
        whole = replace(method, schedule=replace(method.schedule, refresh_interval=interval))
        state = LayerState()
        engine_call(whole, x, layout, state, 0)
        stages[name] = _at_step_one(whole, x, layout, state)
    return stages


def _at_step_one(method: SparseMethod, x: Tensors, layout: TokenLayout, state: LayerState) -> Run:
    return lambda: engine_call(method, x, layout, state, 1)


def per_step(ms: Mapping[str, float], interval: int, sparse_steps: int) -> float:
    """Planning per sparse step in ms: new plans, keeping and reading them, the first clustering, and moving
    rows, over a run.

    Args:
        ms: by stage; a missing stage costs nothing.
        interval: steps that share a plan.
        sparse_steps: steps of the run that are sparse, >= 1.
    """
    plans = -(-sparse_steps // interval)
    total = plans * sum(ms.get(stage, 0.0) for stage in MAKE)
    total += max(0.0, ms.get("first cluster", 0.0) - ms.get("cluster", 0.0))
    if interval > 1:
        total += plans * ms.get("pack", 0.0) + (sparse_steps - plans) * ms.get("unpack", 0.0)
    return total / sparse_steps + sum(ms.get(stage, 0.0) for stage in MOVE)


def timed(stages: Mapping[str, Run], settings: Settings) -> dict[str, float]:
    """ms of every stage; "choose" becomes "select" by taking the score off."""
    ms = {name: settings.time(run, BUDGET_SHARE) for name, run in stages.items()}
    if "choose" in ms:
        ms["select"] = max(0.0, ms.pop("choose") - ms["score"])
    return ms


@benchmark("planning", group=None)
def bench_planning(settings: Settings) -> list[Row]:
    """Every stage of a sparse call by method, in ms and % of the best dense attention; density 0.25."""
    rows: list[Row] = []
    for name, model in chosen_models(settings.quick).items():
        rows += planning_rows(name, model, settings)
    return rows


def planning_rows(name: str, model: Model, settings: Settings) -> list[Row]:
    """Two rows, ms and percent, for each method with and without compensation."""
    torch.manual_seed(0)
    layout = model.layout
    x = smooth_qkv(layout, model.heads, model.dim, settings.device)
    base: Row = {"shape": name, "N": layout.num_tokens, "H": model.heads, "D": model.dim}
    best = fastest(measure_dense(*x, base, settings))
    dense_ms = None if best is None else float(best["ms"])  # type: ignore[arg-type]
    dense: Row = base | {"method": "dense" if best is None else best["kernel"], "density": 1.0, "unit": "ms"}
    rows: list[Row] = [dense | dict.fromkeys(STAGES) | {"attend": dense_ms}]
    first: dict[Ordering, float] = {}  # the first clustering is slow and depends on the ordering alone
    for label, method in compositions(model).items():
        here = base | {"method": label}
        try:
            seen = record(method, x, layout)
            stages = planning_stages(method, x, seen)
            if method.ordering in first:
                stages.pop("first cluster")
            ms = timed(stages, settings)
            if "first cluster" in ms:
                first[method.ordering] = ms["first cluster"]
            elif method.ordering in first:
                ms["first cluster"] = first[method.ordering]
            here |= {"density": round(seen.plan.density.item(), 4)}
            for suffix, correction in (("", None), (" + compensation", PooledCompensation())):
                whole = replace(method, correction=correction)
                measured = ms | timed(attention_stages(whole, x, layout, seen), settings)
                rows += _rows(here | {"method": label + suffix}, measured, model, dense_ms)
        except Exception as error:  # one method's failure must not cost the others
            rows.append(here | {"note": error_note(error)})
    return rows


def _rows(here: Row, ms: dict[str, float], model: Model, dense_ms: float | None) -> list[Row]:
    """The ms of one method and, below, the same in percent of dense attention."""
    sparse_steps = STEPS - model.dense_steps
    named = {stage: ms.get(stage) for stage in (*STAGES, "call", "call, plan carried", "first cluster")}
    named |= {f"planning/step R={r}": per_step(ms, r, sparse_steps) for r in INTERVALS}
    rows = [here | {"unit": "ms"} | {n: None if t is None else round(t, 3) for n, t in named.items()}]
    if dense_ms is not None:
        shares = {n: None if t is None else round(100 * t / dense_ms, 2) for n, t in named.items()}
        rows.append(here | {"unit": "% of dense"} | shares)
    return rows
