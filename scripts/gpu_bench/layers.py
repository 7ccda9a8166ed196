"""Whole transformer layers at full width, dense and sparse, eager and compiled, and what a run would take.

The weights are random and the layers few; shapes, arithmetic and everything around attention are those of the
real models. A layer's time is a forward with these layers less a forward without any, over their number. The
run is an extrapolation of the transformer alone: those times by the number of layers, forwards and steps,
with the usual dense guard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dit_sparse
from dit_sparse.adapters.loading import compile_blocks
from dit_sparse.kernels.dispatch import installed
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.selectors import SelectionInput, Selector
from gpu_bench.harness import Row, Settings, benchmark, error_note, told
from gpu_bench.models import STEPS
from gpu_bench.random_models import SPECS, Spec, build, inputs, only, without_padding_mask
from gpu_bench.recording import KEEP

DENSITIES = (0.25, 0.15)
MEASURED = ("Wan-14B 720p", "HunyuanVideo 720p", "CogVideoX-5B 480p")
QUICK = ("Wan-1.3B 480p", "CogVideoX-5B 480p")
NEW, CARRIED, FIRST = "every step", "carried", "first step"
EAGER = (
    *(("mosaic", NEW), ("mosaic", FIRST)),
    *(("svg2", NEW), ("svg2", FIRST), ("svg2", CARRIED)),
    ("draft", NEW),
)
FUSED = (("mosaic", NEW), ("draft", NEW))
COMPILED = (("mosaic", NEW), ("svg2", NEW), ("svg2", CARRIED))
"""(method, plan). Every one is an attachment, and so a compilation, of its own: the compiled ones are few."""
FUSING = ("wan", "hunyuan_video")
"""Families whose processors can fuse norm and RoPE."""
OBSERVING = ("mosaic",)
"""Methods that learn in a dense call: their "first step" is that call. A run has two: the last of the guard,
and one more halfway."""
INTERVAL = 5
"""Refresh interval of the runs that carry plans."""

Times = Mapping[str, float]
"""ms of one layer, by the name of its list."""


@dataclass(frozen=True)
class Case:
    """One way to run the layers.

    Args:
        mode: "eager", "fused" (eager, norm and RoPE of queries and keys in one kernel) or "compiled".
        method: "dense", or the name of a method.
        density: fraction of the blocks computed.
        plan: :data:`NEW` at every call from carried centroids, :data:`CARRIED` as a whole, or made with
            nothing carried (:data:`FIRST`); "" for dense.
    """

    mode: str
    method: str = "dense"
    density: float = 1.0
    plan: str = ""


MASKED = Case("eager", "dense, padding mask")
"""What stock HunyuanVideo runs: it hands its attention a mask even where nothing is padded."""


class _Switch:
    """A selector whose budget changes between measurements: one attachment, and one compilation, serves all
    densities."""

    def __init__(self, selectors: Mapping[float, Selector]) -> None:
        self.selectors = selectors
        self.density = next(iter(selectors))

    def select(self, given: SelectionInput) -> Tensor:
        """The selection at the present density."""
        return self.selectors[self.density].select(given)


class Bench:
    """The cases of one transformer.

    Attributes:
        times: ms of a layer, for every case that ran.
        rest_ms: a forward without layers.
        notes: a row for every case that did not run.
    """

    def __init__(self, spec: Spec, settings: Settings, densities: tuple[float, ...]) -> None:
        self.spec, self.settings, self.densities = spec, settings, densities
        self.transformer = build(spec, settings.device)
        self.forward = partial(self.transformer, **inputs(spec, settings.device))
        self.times: dict[Case, Times] = {}
        self.notes: list[Row] = []
        with only(self.transformer, spec, None):
            self.rest_ms = settings.time(self.forward)

    def measure(self, case: Case, run: Callable[[], object]) -> None:
        """Time ``run`` with the layers of one list at a time; what it raises becomes a note."""
        times: dict[str, float] = {}
        try:
            for kind in self.spec.blocks:
                with only(self.transformer, self.spec, kind):
                    times[kind] = max(0.0, self.settings.time(run) - self.rest_ms) / self.spec.built
        except Exception as error:  # one case's failure must not cost the others
            self.notes.append(_described(case) | {"note": error_note(error)})
            return
        self.times[case] = times
        told(_described(case) | times)

    def sparse(self, mode: str, method: str, plan: str) -> None:
        """Attach a method, once where it learns nothing, and measure it at every density."""
        model = self.spec.model
        info = ModelInfo(model.family, model.layers, model.dim)
        always: dict[str, Any] = {"dense_steps": 0, "dense_layers": (), "min_tokens": 0}
        always["refresh_interval"] = KEEP if plan == CARRIED else 1
        attach: dict[str, Any] = {"strict": True, "fuse_norm_rope": mode == "fused"}
        if method in OBSERVING:
            always["relearn"] = None
        built = {d: make_method(method, density=d, **always).build(info) for d in self.densities}
        if method in OBSERVING:
            for density in self.densities[:1] if plan == FIRST else self.densities:
                with dit_sparse.sparse_attention(self.transformer, built[density], **attach) as handle:
                    self.forward()
                    run = partial(_afresh, handle.reset, self.forward) if plan == FIRST else self.forward
                    self.measure(Case(mode, method, density, plan), run)
            return
        switch = _Switch({density: made.selector for density, made in built.items()})
        whole = replace(built[switch.density], selector=switch)
        with dit_sparse.sparse_attention(self.transformer, whole, **attach) as handle:
            for density in self.densities[:1] if plan == FIRST else self.densities:
                switch.density = density
                run = self.forward
                if plan == FIRST:
                    run = partial(_afresh, handle.reset, self.forward)
                elif plan == CARRIED:
                    handle.reset()  # the carried plan is of the density before
                self.measure(Case(mode, method, density, plan), run)


def _afresh(reset: Callable[[], None], forward: Callable[[], object]) -> None:
    reset()
    forward()


@benchmark("layers", group=None)
def bench_layers(settings: Settings) -> list[Row]:
    """Transformer layers of full width by mode and density, and the extrapolated run of 50 steps."""
    if not installed("diffusers"):
        return [{"note": "diffusers is not installed: pip install 'diffusers>=0.42'"}]
    rows: list[Row] = []
    for name in QUICK if settings.quick else MEASURED:
        try:
            rows += layer_rows(name, SPECS[name], settings, DENSITIES[:1] if settings.quick else DENSITIES)
        except Exception as error:  # out of memory for one model must not cost the others
            rows.append({"shape": name, "note": error_note(error)})
        torch.cuda.empty_cache()
    return rows


@torch.no_grad()
def layer_rows(
    name: str,
    spec: Spec,
    settings: Settings,
    densities: tuple[float, ...] = DENSITIES,
    compiler: Callable[[Any], None] = compile_blocks,
) -> list[Row]:
    """Rows of one model: ms per layer for every case and kind of layer, then seconds of a run.

    Args:
        name: of the model, in the table.
        spec: the model.
        densities: to measure.
        compiler: compiles the layers of a transformer in place.
    """
    bench = Bench(spec, settings, densities)
    if spec.model.family == "hunyuan_video":
        bench.measure(MASKED, bench.forward)
    with without_padding_mask(bench.transformer, spec):
        bench.measure(Case("eager"), bench.forward)
        for method, plan in EAGER:
            bench.sparse("eager", method, plan)
        for method, plan in FUSED if spec.model.family in FUSING else ():
            bench.sparse("fused", method, plan)
        compiler(bench.transformer)
        torch.compiler.reset()
        bench.measure(Case("compiled"), bench.forward)
        for method, plan in COMPILED:
            torch.compiler.reset()  # graphs of former attachments count towards the recompile limit
            bench.sparse("compiled", method, plan)
    base: Row = {"shape": name, "N": spec.model.layout.num_tokens, "batch": spec.batch}
    rows = layer_table(spec, bench.times) + run_table(spec, bench.times, bench.rest_ms) + bench.notes
    return [base | row for row in rows]


def _described(case: Case) -> Row:
    density = case.density if case.plan else 1.0
    return {"mode": case.mode, "method": case.method, "density": density, "plan": case.plan or None}


def _speedups(value: float, dense: Mapping[str, float | None]) -> Row:
    """How many times faster than dense, by mode."""
    return {
        f"vs dense {mode}": round(base / value, 2) if base and value else None for mode, base in dense.items()
    }


def layer_table(spec: Spec, times: Mapping[Case, Times]) -> list[Row]:
    """A row for each kind of layer and case."""
    rows: list[Row] = []
    for kind in spec.blocks:
        dense = {mode: times.get(Case(mode), {}).get(kind) for mode in ("eager", "compiled")}
        for case, ms in times.items():
            row = {"what": f"layer of {kind}"} | _described(case) | {"ms": round(ms[kind], 3)}
            rows.append(row | _speedups(ms[kind], dense))
    return rows


def run_table(spec: Spec, times: Mapping[Case, Times], rest_ms: float) -> list[Row]:
    """A row for each run: dense, a plan at every sparse step, a plan every :data:`INTERVAL` steps."""
    seconds: dict[Case, float] = {}
    for mode in ("eager", "fused", "compiled"):
        dense = times.get(Case("eager" if mode == "fused" else mode))
        if dense is None:
            continue
        if mode != "fused":
            seconds[Case(mode)] = run_seconds(spec, rest_ms, dense, dense)
        for case, new in times.items():
            if case.mode != mode or case.plan != NEW:
                continue
            first = _first_extra(times, case.method, dense, spec.model.forwards // spec.batch)
            seconds[case] = run_seconds(spec, rest_ms, dense, new, first)
            carried = times.get(replace(case, plan=CARRIED))
            if carried is not None:
                mixed = {k: (new[k] + (INTERVAL - 1) * carried[k]) / INTERVAL for k in new}
                every = replace(case, plan=f"every {INTERVAL} steps")
                seconds[every] = run_seconds(spec, rest_ms, dense, mixed, first)
    base = {mode: seconds.get(Case(mode)) for mode in ("eager", "compiled")}
    what = f"{STEPS} steps, {spec.model.dense_steps} of them dense"
    return [
        {"what": what} | _described(case) | {"seconds": round(total, 2)} | _speedups(total, base)
        for case, total in seconds.items()
    ]


def _first_extra(times: Mapping[Case, Times], method: str, dense: Times, forwards: int) -> Times:
    """What a layer's first calls cost beyond later ones, in ms of a forward; nothing where it was not
    measured.

    A forward is the mean of a step's: those of :data:`OBSERVING` share what the first branch learns, the
    others run densely then and make one sparse call, from which they take their residual.
    """
    for case, first in times.items():
        new = times.get(replace(case, plan=NEW))
        if case.method == method and case.plan == FIRST and new is not None:
            if method not in OBSERVING:
                return {kind: max(0.0, first[kind] - new[kind]) for kind in first}
            # Twice a step is observed: one of the guard's, and one that would have been sparse.
            searching = {kind: 2 * first[kind] - dense[kind] - new[kind] for kind in first}
            following = {kind: dense[kind] + new[kind] for kind in first}
            return {
                kind: max(0.0, (searching[kind] + (forwards - 1) * following[kind]) / forwards)
                for kind in first
            }
    return {}


def run_seconds(
    spec: Spec, rest_ms: float, dense: Times, sparse: Times, first_extra: Times | None = None
) -> float:
    """Seconds of the transformer in a run of :data:`~gpu_bench.models.STEPS` steps.

    Args:
        spec: numbers of layers, forwards per step, dense steps.
        rest_ms: a forward without layers.
        dense, sparse: ms of a layer.
        first_extra: ms that the first calls of a layer take longer, in a forward.
    """

    def all_layers(ms: Times) -> float:
        return sum(count * ms.get(kind, 0.0) for kind, count in spec.blocks.items())

    model = spec.model
    total = STEPS * rest_ms
    total += model.dense_steps * all_layers(dense) + (STEPS - model.dense_steps) * all_layers(sparse)
    total += all_layers(first_extra or {})
    return total * (model.forwards // spec.batch) / 1e3
