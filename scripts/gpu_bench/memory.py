"""Memory of sparse attention: what a call needs at its peak, and what is carried between steps."""

from __future__ import annotations

from dataclasses import replace

import torch

from dit_sparse.corrections import PooledCompensation
from dit_sparse.engine import SparseMethod
from dit_sparse.kernels.peak_memory import PeakMemory
from dit_sparse.methods import ModelInfo, make_method
from dit_sparse.runtime import Runtime
from dit_sparse.state import LayerState
from gpu_bench.harness import Row, Settings, benchmark, error_note
from gpu_bench.models import Model, branches_of, chosen_models, smooth_qkv
from gpu_bench.recording import DENSITY, Tensors, compositions, engine_call, runtime_call

INTERVALS = (1, 5)
METHODS = ("svg2", "draft", "tiles, mean_key", "clusters, mean_key")
LEARNING = ("mosaic", "paro", "rettention", "adaspa")
"""Methods that carry what they learn in a dense call."""


@benchmark("memory", group=None)
def bench_memory(settings: Settings) -> list[Row]:
    """Peak extra memory of one call (beside q, k, v and the output), and carried state of the whole model."""
    rows: list[Row] = []
    for name, model in chosen_models(settings.quick).items():
        rows += memory_rows(name, model, settings)
    return rows


def memory_rows(name: str, model: Model, settings: Settings) -> list[Row]:
    """One row for each method, correction and refresh interval.

    The state of the model is that of the measured layer times layers and guidance branches.
    """
    torch.manual_seed(0)
    x = smooth_qkv(model.layout, model.heads, model.dim, settings.device)
    chosen = {label: method for label, method in compositions(model).items() if label in METHODS}
    rows: list[Row] = []
    for label, method in chosen.items():
        for suffix, correction in (("", None), (" + compensation", PooledCompensation())):
            for interval in INTERVALS:
                schedule = replace(method.schedule, refresh_interval=interval)
                row: Row = {"shape": name, "method": label + suffix, "refresh_interval": interval}
                try:
                    row |= _measured(replace(method, correction=correction, schedule=schedule), x, model)
                except Exception as error:  # out of memory is a result, too
                    row |= {"note": error_note(error)}
                rows.append(row)
    info = ModelInfo(model.family, model.layers, model.dim)
    for label in LEARNING:
        row = {"shape": name, "method": label, "refresh_interval": 1}
        try:
            made = make_method(label, density=DENSITY, dense_steps=1, dense_layers=(), min_tokens=0)
            row |= _learnt(made.build(info), x, model)
        except Exception as error:
            row |= {"note": error_note(error)}
        rows.append(row)
    return rows


def _learnt(method: SparseMethod, x: Tensors, model: Model) -> Row:
    """Bytes of the observed call and of a sparse one, and of the state of all branches together."""
    runtime = Runtime(method)
    peaks: list[float | None] = []
    for step in range(2):
        memory = PeakMemory(x[0].device)
        for branch in branches_of(model):
            runtime.run(*x, runtime_call(model.layout, step, x[0], branch))
        extra = memory.extra_bytes() if x[0].is_cuda else None
        # Above what is held: the output of the call is no extra.
        peaks.append(None if extra is None else round((extra - x[0].nbytes) / 1e6, 1))
    # A batch of both branches carries twice what one sample does.
    per_layer = runtime.state.nbytes * (model.forwards // len(branches_of(model)))
    return {
        "peak_extra_MB": peaks[1],
        "peak_observed_MB": peaks[0],
        "state_per_layer_MB": round(per_layer / model.forwards / 1e6, 3),
        "layers": model.layers,
        "branches": model.forwards,
        "state_GB": round(per_layer * model.layers / 1e9, 3),
    }


def _measured(method: SparseMethod, x: Tensors, model: Model) -> Row:
    """Bytes of a call after the first, and of what it leaves in the state."""
    state, on_gpu = LayerState(), x[0].is_cuda
    engine_call(method, x, model.layout, state, 0)
    peak: float | None = None
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    # Far enough for a new plan: it is the call that needs most.
    out, _ = engine_call(method, x, model.layout, state, method.schedule.refresh_interval)
    if on_gpu:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before - out.nbytes
    whole = state.nbytes * model.layers * model.forwards
    return {
        "peak_extra_MB": None if peak is None else round(peak / 1e6, 1),
        "state_per_layer_MB": round(state.nbytes / 1e6, 3),
        "layers": model.layers,
        "branches": model.forwards,
        "state_GB": round(whole / 1e9, 3),
    }
