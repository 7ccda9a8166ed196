"""Is the attention time that the profiler predicts the time that a shipped profile takes on its own model?

Attention calls of the embedded model are captured on a dense run. Every layer learns at the last dense step
and runs a later one by the profile; predicted and measured are summed over the layers. **A tiny model's
times**: its calls take microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np

from dit_sparse import patterns
from dit_sparse.adapters.loading import load_pipeline, quiet
from dit_sparse.embedded import default_call, heldout_prompts, tiny_wan_path
from dit_sparse.engine import SparseMethod
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.methods.profiled import make_profiled
from dit_sparse.methods.profiled_rows import HeadRows
from dit_sparse.profiler import CostTable, measure_cost
from dit_sparse.profiler.cost import TimeCost
from dit_sparse.report.capture import CapturedCall, capture_calls, context_of
from dit_sparse.runtime import Call, Runtime
from dit_sparse.state import LayerState
from gpu_bench.harness import Row, Settings, Timer, benchmark, dense_baselines, error_note

PROFILES = Path(__file__).resolve().parents[2] / "profiles" / "tiny-wan"
SIZES = ((17, 128, 128), (33, 256, 256))
"""(frames, height, width) in pixels; the first is that of the profiles."""
LEARN, RUN = 4, 7
"""The last dense step, and a sparse one."""
SEED = 5
METHODS = ("mosaic", "oracle", "paro", "rettention", "draft", "svg2", "gna")
DENSITY = 0.2


@benchmark("embedded_times", default=False, group=None)
def bench_embedded_times(settings: Settings) -> list[Row]:
    """Attention of the embedded model by its shipped profiles: predicted from a cost table, and measured."""
    rows = []
    for size in SIZES[:1] if settings.quick else SIZES:
        calls, table = captured(size, settings), None
        for name in ("balanced", "fast"):
            row: Row = {"size": "x".join(map(str, size)), "profile": name}
            try:
                profile = patterns.load_profile(PROFILES / f"{name}.safetensors")
                table = table or cost_table(profile, calls[0], settings)
                row |= profile_row(profile, table, calls, settings)
            except Exception as error:
                row |= {"note": error_note(error)}
            rows.append(row)
    return rows


@benchmark("embedded_methods", default=False, group=None)
def bench_embedded_methods(settings: Settings) -> list[Row]:
    """Attention of a sparse step of the embedded model by method, all layers, with the host ahead."""
    rows = []
    for size in SIZES[:1] if settings.quick else SIZES[1:]:
        calls = captured(size, settings)
        x = (calls[0].q, calls[0].k, calls[0].v)
        base: Row = {"size": "x".join(map(str, size)), "N": calls[0].layout.num_tokens}
        dense_ms = min(settings.ahead(run, settings.budget_ms) for run in dense_baselines(*x).values())
        rows.append(
            base | {"method": "dense", "density": 1.0, "ms": round(calls[0].num_layers * dense_ms, 3)}
        )
        model = ModelInfo("wan", calls[0].num_layers, x[0].shape[-1])
        for name in METHODS:
            row = base | {"method": name}
            try:
                method = make_method(
                    name, density=DENSITY, dense_steps=LEARN + 1, dense_layers=(), min_tokens=0
                )
                (ms,), density = sparse_step(method.build(model), calls, settings, settings.ahead)
                row |= {"density": round(density, 3), "ms": round(ms, 3)}
            except Exception as error:
                row |= {"note": error_note(error)}
            rows.append(row)
    return rows


def captured(size: tuple[int, int, int], settings: Settings) -> list[CapturedCall]:
    """Dense attention calls of the embedded model at :data:`LEARN` and :data:`RUN`, by step and layer."""
    quiet()
    dtype = "float32" if settings.device == "cpu" else "bfloat16"
    pipe = load_pipeline(tiny_wan_path(), dtype=dtype, device=settings.device)
    frames, height, width = size
    call = default_call(heldout_prompts()[SEED], num_frames=frames, height=height, width=width)
    return capture_calls(pipe, call, seed=SEED, steps=(LEARN, RUN))


def sparse_step(
    method: SparseMethod, calls: Sequence[CapturedCall], settings: Settings, *timers: Timer
) -> tuple[list[float], float]:
    """ms of all layers at :data:`RUN`, learnt at :data:`LEARN`, by each of the timers; their mean density.

    Raises:
        RuntimeError: if a layer runs dense.
    """
    times, densities = [], []
    by_site = {(call.site.step, call.site.layer): call for call in calls}
    for layer in range(calls[0].num_layers):
        taken, later = by_site[LEARN, layer], by_site[RUN, layer]
        runtime = Runtime(method)
        runtime.run(taken.q, taken.k, taken.v, _as_call(taken))
        run = partial(runtime.run, later.q, later.k, later.v, _as_call(later))
        run()
        last = runtime.records[-1]
        if last.dense_reason is not None:
            raise RuntimeError(f"layer {layer} ran dense: {last.dense_reason}")
        times.append([timer(run, settings.budget_ms) for timer in timers])
        densities.append(float(last.density))
    return [sum(found) for found in zip(*times)], mean(densities)


def cost_table(profile: patterns.Profile, call: CapturedCall, settings: Settings) -> CostTable:
    """Of this device, for the model's attention at the size of a call."""
    model = profile.header.model
    return measure_cost(
        *(call.q.device, call.layout, model.heads, model.head_dim),
        command="gpu_check.py",
        dtype=call.q.dtype,
        block_size=profile.header.grid.block_size,
        timer=settings.ahead,
    )


def profile_row(
    profile: patterns.Profile, table: CostTable, calls: Sequence[CapturedCall], settings: Settings
) -> Row:
    """Of all layers together; the ratio is predicted by measured, with the host ahead."""
    layout, model = calls[0].layout, profile.header.model
    built = replace(make_profiled(profile, ["transformer"]), allow_resample=True)
    method = built.build(ModelInfo(model.family, model.layers, model.head_dim))
    (ms, alone), density = sparse_step(method, calls, settings, settings.ahead, settings.timer)
    heads = HeadRows(profile)
    contexts = [context_of(method, call, LayerState()) for call in calls if call.site.step == RUN]
    rows = [heads.row(context) for context in contexts]
    said = sum(predicted(table, layout.num_tokens, np.array(r.kind), np.array(r.density)) for r in rows)
    return {
        "N": layout.num_tokens,
        "density": round(density, 4),
        "dense ms": round(model.layers * table.dense_ms(layout.num_tokens), 3),
        "predicted ms": round(said, 3),
        "measured ms": round(ms, 3),
        "host not ahead ms": round(alone, 3),
        "ratio": round(said / ms, 3),
    }


def predicted(table: CostTable, tokens: int, kind: np.ndarray, density: np.ndarray) -> float:
    """ms of a layer whose heads learn, as the profiler counts them."""
    cost = TimeCost(table, tokens, 1, len(kind))
    return float(cost.heads(kind, density).sum()) + cost.reorder() + cost.correction()


def _as_call(seen: CapturedCall) -> Call:
    """As the hooks hand it to the runtime."""
    return Call(seen.site, seen.layout, seen.num_layers, None, lambda: seen.out, seen.scale, None)
