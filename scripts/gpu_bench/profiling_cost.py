"""What recording costs: the profiler's observer at real sizes, and a whole recording extrapolated from it.

One layer's calls are observed at full width on smooth data (:func:`gpu_bench.models.smooth_qkv`), as a
recording of several prompts observes them. It has three kinds of calls: the first of a step group and layer,
from which axis orders, pattern classes and the errors of the precisions are learnt; the others of the first
prompt, which give block mass only; and those of later prompts, on which all templates are tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dit_sparse.cli.profile_run import DEFAULT, step_groups
from dit_sparse.embedded import CALIBRATION_PROMPTS
from dit_sparse.engine import SparseMethod, observed_attention
from dit_sparse.kernels.peak_memory import PeakMemory, peak_bytes
from dit_sparse.layout import Site, TokenLayout
from dit_sparse.profiler import RecordSettings
from dit_sparse.profiler.record_observer import Recorder
from dit_sparse.report.clock import Stopwatch
from dit_sparse.schedule import Schedule
from dit_sparse.state import LayerState
from gpu_bench.harness import Row, Settings, benchmark, error_note, fastest, measure_dense
from gpu_bench.models import MODELS, STEPS, Model, smooth_qkv
from gpu_bench.recording import Tensors

PART = 4
"""Heads that are observed first: they compile the kernels, and tell how long all heads will take."""
LIMIT_S = 25.0
"""Where a call would take longer, those heads are all that is observed, and the seconds are scaled."""
PROMPTS = len(CALIBRATION_PROMPTS)
FIRST, OTHERS, TRIED = "first of group and layer", "others of first prompt", "of later prompts"
DENSE = "not observed: dense"


@dataclass(frozen=True)
class Observed:
    """One observed call.

    Args:
        seconds: its dense attention included.
        extra_bytes, peak_bytes: peak memory without and with what was held before; None where nobody tells.
    """

    seconds: float
    extra_bytes: int | None = None
    peak_bytes: int | None = None


@benchmark("profiling_cost", default=False, group=None)
def bench_profiling_cost(settings: Settings) -> list[Row]:
    """Observed attention calls of a layer, and the attention of a whole recording by the CLI's defaults."""
    names = ("Wan-1.3B 480p",) if settings.quick else ("Wan-14B 720p", "HunyuanVideo 720p")
    return [row for name in names for row in recording_rows(name, MODELS[name], settings)]


def recording_rows(name: str, model: Model, settings: Settings, limit_s: float = LIMIT_S) -> list[Row]:
    """A row for each kind of call, and one for the whole recording."""
    torch.manual_seed(0)
    base: Row = {"shape": name, "N": model.layout.num_tokens, "H": model.heads}
    asked = RecordSettings(step_groups(str(DEFAULT["groups"]), STEPS, None), int(str(DEFAULT["observe"])))
    try:
        x = smooth_qkv(model.layout, model.heads, model.dim, settings.device)
        best = fastest(measure_dense(*x, {}, settings))
        if best is None:
            raise RuntimeError("no dense kernel runs here")
        dense_s = float(str(best["ms"])) / 1e3
        part: Tensors = (x[0][:, :, :PART], x[1][:, :, :PART], x[2][:, :, :PART])
        cold, _ = observed(part, model.layout, asked)
        found, mass = observed(part, model.layout, asked)
        once_s = sum(call.seconds for call in cold.values()) - sum(call.seconds for call in found.values())
        scale = model.heads / part[0].shape[2]
        if max(call.seconds for call in found.values()) * scale <= limit_s:
            (found, mass), scale = observed(x, model.layout, asked), 1.0
    except Exception as error:  # out of memory is a result, too
        return [base | {"note": error_note(error)}]
    found[DENSE] = Observed(dense_s / scale)
    rows, hours = [], 0.0
    for kind, number in call_counts(model, asked).items():
        call, seconds = found[kind], found[kind].seconds * scale
        hours += number * seconds / 3600
        row = base | {"calls": kind, "seconds": round(seconds, 3), "x dense": round(seconds / dense_s, 2)}
        row |= {"peak GB": _gb(call.peak_bytes), "peak beside q, k, v GB": _gb(call.extra_bytes)}
        row |= {"number": number, "hours": round(number * seconds / 3600, 2)}
        if scale > 1 and kind != DENSE:
            row |= {"note": f"{PART} of {model.heads} heads observed: seconds scaled, memory not"}
        rows.append(row)
    groups = len(asked.groups)
    stated = (
        f"{model.layers} layers x {model.forwards} branches x {groups} groups x {asked.observed} observed "
        f"steps x {PROMPTS} prompts of {STEPS} steps; attention alone; compiling and rules {once_s:.0f} s"
    )
    # The sums of the prompts before, and those of the one that runs.
    held = 2 * mass * scale * groups * model.layers
    whole = {"calls": "whole recording", "hours": round(hours, 2), "mass in host memory GB": _gb(held)}
    return [*rows, base | whole | {"note": stated}]


def call_counts(model: Model, asked: RecordSettings) -> dict[str, int]:
    """Attention calls of a recording by kind; those that are not observed include the perturbed forwards."""
    groups, steps = len(asked.groups), sum(map(len, asked.observed_steps))
    prompt, first = model.layers * model.forwards * steps, model.layers * groups
    # For every group one forward without a perturbation and one for every layer.
    perturbed = groups * (model.layers + 1) * model.layers
    dense = PROMPTS * model.layers * model.forwards * (STEPS - steps) + perturbed
    return {FIRST: first, OTHERS: prompt - first, TRIED: (PROMPTS - 1) * prompt, DENSE: dense}


@torch.no_grad()
def observed(x: Tensors, layout: TokenLayout, asked: RecordSettings) -> tuple[dict[str, Observed], int]:
    """A call of each kind, in the order of a recording; and bytes of the block mass that it keeps of them."""
    first, last = asked.observed_steps[0][0], asked.observed_steps[0][-1]
    state, watch = LayerState(), Stopwatch(x[0].device)

    def call(recorder: Recorder, step: int) -> Observed:
        dense = Schedule(STEPS, min_tokens=0)
        method = SparseMethod("record", recorder, schedule=dense, block_size=asked.block_size)
        context = method.context(layout, Site(0, step, STEPS), state, head_dim=x[0].shape[-1])
        begun, memory = watch.now(), PeakMemory(x[0].device)
        observed_attention(*x, method=method, context=context)
        seconds = watch.now() - begun
        return Observed(seconds, memory.extra_bytes(), peak_bytes(x[0].device))

    recorder = Recorder(asked, "transformer", True, None, lambda site: None)
    found = {FIRST: call(recorder, first), OTHERS: call(recorder, last)}
    recorder.end_prompt()
    later, state = Recorder(asked, "transformer", True, recorder.sums, lambda site: None), LayerState()
    found[TRIED] = call(later, first)
    return found, recorder.sums.mass[0, 0].nbytes


def _gb(size: float | None) -> float | None:
    return None if size is None else round(size / 1e9, 3)
