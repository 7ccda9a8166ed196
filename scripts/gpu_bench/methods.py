"""What attention costs over a whole run by method: sparse calls by stage, observed calls, the dense guard.

A run of 50 steps is walked through once on a handful of tokens, which tells how many calls are dense,
observed (dense, and learnt from) or sparse, in every guidance branch that has forwards of its own. The calls
that differ are then timed at full size, one layer, and summed up by these counts. Timed are calls of the
runtime, as the hooks make them; the data are smooth random fields (:func:`gpu_bench.models.smooth_qkv`),
which stay the same from step to step and are the same in both branches.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

import torch

import dit_sparse
from dit_sparse.context import STAGES
from dit_sparse.engine import SparseMethod
from dit_sparse.layout import Branch, TokenLayout
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.report.clock import Stopwatch
from dit_sparse.runtime import Runtime
from gpu_bench.harness import Row, Settings, benchmark, error_note, fastest, measure_dense, told
from gpu_bench.models import STEPS, Model, branches_of, chosen_models, smooth_qkv
from gpu_bench.recording import Tensors, runtime_call

DENSITY = 0.2
REPEATS = 4
"""Sparse steps timed after the first."""
COMPARED = ("mosaic", "paro", "draft", "svg2", "rettention")
"""Methods that are timed at every shape; the first shape has all of them."""
WIDE, WIDE_DENSITIES = "Wan-14B 720p", (0.5, 0.3, 0.2, 0.1, 0.05)
"""Where those are timed at more densities, and all others at :data:`DENSITY`."""
UNTIMED = ("oracle",)
"""No methods for users: they form the whole attention matrix."""
SLOW = ("sale", "svg_ear")
"""Methods whose estimates have no kernels of their own: timed at the first shape only."""
PLANNING = tuple(stage for stage in STAGES if stage not in ("attend", "correct"))


@benchmark("methods", group=None)
def bench_methods(settings: Settings) -> list[Row]:
    """Attention of one layer over a run by method, density 0.2 in the sparse calls, in % of dense calls."""
    rows: list[Row] = []
    models = chosen_models(settings.quick)
    every = [name for name in dit_sparse.list_methods() if name not in UNTIMED]
    for name in sorted(models, key=lambda name: name != "Wan-1.3B 480p"):
        asked = [(label, DENSITY) for label in COMPARED]
        if name == "Wan-1.3B 480p":
            asked = [(label, DENSITY) for label in every]
        elif name == WIDE:
            asked = [(label, density) for label in COMPARED for density in WIDE_DENSITIES]
            asked += [(label, DENSITY) for label in every if label not in (*COMPARED, *SLOW)]
        rows += method_rows(name, models[name], asked, settings)
    return rows


def method_rows(name: str, model: Model, asked: list[tuple[str, float]], settings: Settings) -> list[Row]:
    """One row for each (method, density), after one for dense attention."""
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
    for label, density in asked:
        row = base | {"method": label, "asked": density}
        try:
            method = make_method(label, density=density, **shared).build(info)
            rows.append(told(row | timed_run(method, model, x, dense_ms)))
        except Exception as error:  # one method's failure must not cost the others
            rows.append(told(row | {"note": error_note(error)}))
    return rows


@dataclass(frozen=True)
class BranchTimes:
    """Calls of one branch in ms: the observed one, the first sparse one, a later one (median) and its stages;
    and its density."""

    observed: float
    first: float
    later: float
    stages: dict[str, float]
    density: float


def timed_run(method: SparseMethod, model: Model, x: Tensors, dense_ms: float) -> Row:
    """The figures of one method, summed or averaged over branches; ``dense_ms`` is the fastest dense call."""
    counts = calls_of_run(method, model)
    last_dense = method.schedule.first_sparse_step(STEPS) - 1
    timed_calls(method, model, x, last_dense, repeats=1)  # compiles and tunes
    timed = timed_calls(method, model, x, last_dense)
    calls = sum(sum(kinds.values()) for kinds in counts.values())
    sparse = sum(kinds["sparse"] for kinds in counts.values())
    learning, total = 0.0, 0.0
    for branch, kinds in counts.items():
        times = timed[branch]
        learning += kinds["observed"] * max(0.0, times.observed - dense_ms)
        learning += max(0.0, times.first - times.later)
        total += (kinds["dense"] + kinds["observed"]) * dense_ms + kinds["sparse"] * times.later
    total += learning
    later, density = (mean(getattr(times, name) for times in timed.values()) for name in ("later", "density"))
    share = 100.0 / dense_ms

    def spent(*stages: str) -> float:
        return share * mean(sum(times.stages.get(s, 0.0) for s in stages) for times in timed.values())

    return {
        "density": round(density, 3),
        "run density": round((calls - sparse + sparse * density) / calls, 3),
        "sparse call, ms": round(later, 3),
        "call speed-up": round(dense_ms / later, 2),
        "attend, %": round(spent("attend"), 1),
        "planning, %": round(spent(*PLANNING), 1),
        "correction, %": round(spent("correct"), 1),
        "learning, % per sparse call": round(share * learning / max(1, sparse), 1),
        "learning, dense calls per run": round(learning / dense_ms, 1),
        "run speed-up": round(calls * dense_ms / total, 2),
    }


def calls_of_run(method: SparseMethod, model: Model) -> dict[Branch, Counter[str]]:
    """How many calls of a layer are "dense", "observed" and "sparse" in every branch, by a run over few
    tokens. The last dense step counts as observed where the method learns from it."""
    layout = TokenLayout(3, 8, 8, model.text_tokens and 32, model.text_position)
    x = tuple(torch.randn(1, layout.num_tokens, 2, 64) for _ in range(3))
    runtime = Runtime(method)
    counts: dict[Branch, Counter[str]] = {branch: Counter() for branch in branches_of(model)}
    for step in range(STEPS):
        for branch in counts:
            runtime.run(*x, runtime_call(layout, step, x[0], branch))
    for record in runtime.records:
        kind = "sparse" if record.dense_reason is None else "observed"
        counts[record.site.branch][kind if record.backend != "dense" else "dense"] += 1
    return counts


def timed_calls(
    method: SparseMethod, model: Model, x: Tensors, last_dense: int, repeats: int = REPEATS
) -> dict[Branch, BranchTimes]:
    """The calls of the last dense step, the first sparse one and ``repeats`` later ones."""
    runtime = Runtime(method)
    watch = Stopwatch(x[0].device)
    branches = branches_of(model)

    def run(step: int, branch: Branch) -> list:
        marks = [("start", watch.mark())]
        runtime.recorder = lambda stage: marks.append((stage, watch.mark()))
        runtime.run(*x, runtime_call(model.layout, step, x[0], branch))
        marks.append(("end", watch.mark()))
        return marks

    # No waiting between calls: in a model the host runs ahead of the device, too.
    marked = [{branch: run(last_dense + i, branch) for branch in branches} for i in range(2 + repeats)]
    watch.now()
    times = {}
    for branch in branches:
        observing, beginning, *later = [
            [(name, 1e3 * watch.seconds(marks[branch][0][1], at)) for name, at in marks[branch]]
            for marks in marked
        ]
        stages: dict[str, list[float]] = {}
        for marks in later:
            spent: dict[str, float] = {}
            for (_, begin), (stage, end) in pairwise(marks):
                spent[stage] = spent.get(stage, 0.0) + end - begin
            for stage, ms in spent.items():
                stages.setdefault(stage, []).append(ms)
        times[branch] = BranchTimes(
            observing[-1][1],
            beginning[-1][1],
            median(marks[-1][1] for marks in later),
            {stage: median(ms) for stage, ms in stages.items()},
            _sparse_density(runtime, branch),
        )
    return times


def _sparse_density(runtime: Runtime, branch: Branch) -> float:
    """Of the last sparse call; a method may have observed dense attention again since."""
    found = (r.density for r in runtime.records if r.dense_reason is None and r.site.branch == branch)
    return float(list(found)[-1])
