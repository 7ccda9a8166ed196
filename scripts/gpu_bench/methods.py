"""What attention costs over a whole run by method: sparse calls by stage, observed calls, the dense guard.

A run of 50 steps is walked through once on a handful of tokens, which tells how many calls are dense,
observed (dense, and learnt from) or sparse. The calls that differ are then timed at full size, one layer, and
summed up by these counts. Timed are calls of the runtime, as the hooks make them; the data are smooth random
fields (:func:`gpu_bench.models.smooth_qkv`), which stay the same from step to step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch

import dit_sparse
from dit_sparse.context import STAGES
from dit_sparse.engine import SparseMethod
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.report.clock import Stopwatch
from dit_sparse.runtime import Call, Runtime
from gpu_bench.harness import Row, Settings, benchmark, error_note, fastest, measure_dense, told
from gpu_bench.models import STEPS, Model, chosen_models, smooth_qkv
from gpu_bench.recording import Tensors

DENSITY = 0.2
REPEATS = 5
"""Sparse calls timed after the first."""
LARGE = ("mosaic", "paro", "draft", "svg2", "rettention")
"""Methods that are also timed at the other shapes; the first shape has all of them."""
UNTIMED = ("oracle",)
"""No methods for users: they form the whole attention matrix."""
PLANNING = tuple(stage for stage in STAGES if stage not in ("attend", "correct"))


@benchmark("methods", group=None)
def bench_methods(settings: Settings) -> list[Row]:
    """Attention of one layer over a run by method, density 0.2 in the sparse calls, in % of dense calls."""
    rows: list[Row] = []
    models = chosen_models(settings.quick)
    for name in sorted(models, key=lambda name: name != "Wan-1.3B 480p"):
        first = name == "Wan-1.3B 480p"
        methods = [m for m in dit_sparse.list_methods() if m not in UNTIMED] if first else list(LARGE)
        rows += method_rows(name, models[name], methods, settings)
    return rows


def method_rows(name: str, model: Model, methods: list[str], settings: Settings) -> list[Row]:
    """One row for each method, after one for dense attention."""
    torch.manual_seed(0)
    x = smooth_qkv(model.layout, model.heads, model.dim, settings.device)
    base: Row = {"shape": name}
    best = fastest(measure_dense(*x, base, settings))
    if best is None:
        return [base | {"method": "dense", "note": "no dense kernel ran"}]
    dense_ms = float(best["ms"])  # type: ignore[arg-type]
    rows: list[Row] = [base | {"method": best["kernel"], "sparse call, ms": dense_ms, "run speed-up": 1.0}]
    info = ModelInfo(model.family, model.layers, model.dim)
    shared = {"dense_steps": model.guard, "dense_layers": (), "min_tokens": 0}
    for label in methods:
        try:
            method = make_method(label, density=DENSITY, **shared).build(info)
            rows.append(told(base | {"method": label} | timed_run(method, model, x, dense_ms)))
        except Exception as error:  # one method's failure must not cost the others
            rows.append(told(base | {"method": label, "note": error_note(error)}))
    return rows


def timed_run(method: SparseMethod, model: Model, x: Tensors, dense_ms: float) -> Row:
    """The figures of one method; ``dense_ms`` is the fastest dense call."""
    counts = calls_of_run(method, model)
    last_dense = method.schedule.first_sparse_step(STEPS) - 1
    timed_calls(method, model, x, last_dense)  # compiles and tunes
    observed, first, later, stages, density = timed_calls(method, model, x, last_dense)
    calls, sparse = sum(counts.values()), counts["sparse"]
    learning = counts["observed"] * max(0.0, observed - dense_ms) + max(0.0, first - later)
    total = (calls - sparse) * dense_ms + sparse * later + learning
    share = 100.0 / dense_ms
    return {
        "density": round(density, 3),
        "run density": round((calls - sparse + sparse * density) / calls, 3),
        "sparse call, ms": round(later, 3),
        "call speed-up": round(dense_ms / later, 2),
        "attend, %": round(share * stages.get("attend", 0.0), 1),
        "planning, %": round(share * sum(stages.get(stage, 0.0) for stage in PLANNING), 1),
        "correction, %": round(share * stages.get("correct", 0.0), 1),
        "learning, % per sparse call": round(share * learning / max(1, sparse), 1),
        "run speed-up": round(calls * dense_ms / total, 2),
    }


def calls_of_run(method: SparseMethod, model: Model) -> Counter[str]:
    """How many calls of a layer in one branch are "dense", "observed" and "sparse", by a run over few
    tokens. The last dense step counts as observed where the method learns from it."""
    layout = TokenLayout(3, 8, 8, model.text_tokens and 32, model.text_position)
    x = tuple(torch.randn(1, layout.num_tokens, 2, 64) for _ in range(3))
    runtime = Runtime(method)
    for step in range(STEPS):
        runtime.run(*x, _call(step, layout, lambda: x[0]))
    kinds = (
        "sparse" if record.dense_reason is None else "observed" if record.backend != "dense" else "dense"
        for record in runtime.records
    )
    return Counter(kinds)


def timed_calls(
    method: SparseMethod, model: Model, x: Tensors, last_dense: int
) -> tuple[float, float, float, dict[str, float], float]:
    """ms of the observed call, the first sparse one, a later one (median), its stages, and its density."""
    runtime = Runtime(method)
    watch = Stopwatch(x[0].device)

    def run(step: int) -> list:
        marks = [("start", watch.mark())]
        runtime.recorder = lambda stage: marks.append((stage, watch.mark()))
        runtime.run(*x, _call(step, model.layout, lambda: x[0]))
        marks.append(("end", watch.mark()))
        return marks

    # No waiting between calls: in a model the host runs ahead of the device, too.
    marked = [run(last_dense + i) for i in range(2 + REPEATS)]
    watch.now()
    observing, beginning, *later = [
        [(name, 1e3 * watch.seconds(marks[0][1], at)) for name, at in marks] for marks in marked
    ]
    observed, first = observing[-1][1], beginning[-1][1]
    stages: dict[str, list[float]] = {}
    for marks in later:
        spent: Counter[str] = Counter()
        for (_, begin), (stage, end) in pairwise(marks):
            spent[stage] += end - begin  # type: ignore[assignment]
        for stage, ms in spent.items():
            stages.setdefault(stage, []).append(ms)
    return (
        observed,
        first,
        median(marks[-1][1] for marks in later),
        {stage: median(ms) for stage, ms in stages.items()},
        float(runtime.records[-1].density),
    )


def _call(step: int, layout: TokenLayout, dense: Callable[[], torch.Tensor]) -> Call:
    return Call(Site(0, step, STEPS), layout, 1, None, dense, None, None)
