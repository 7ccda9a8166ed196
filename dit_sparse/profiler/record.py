"""Run a model densely on a few prompts and record what its heads do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dit_sparse.adapters.attach import transformers_of
from dit_sparse.adapters.base import find_adapter
from dit_sparse.kernels.peak_memory import PeakMemory
from dit_sparse.patterns import ScheduleFacts
from dit_sparse.patterns.fingerprint import model_facts
from dit_sparse.profiler.record_arguments import calibration_of, checked_steps, record_arguments
from dit_sparse.profiler.record_prompt import Progress, record_prompt
from dit_sparse.profiler.record_settings import RecordSettings
from dit_sparse.profiler.record_sums import FILE, Sums, recording_of
from dit_sparse.profiler.recording import Recording


class _Silent:
    def start(self, total: int, done: int = 0) -> None: ...

    def advance(self) -> None: ...


def record(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    *,
    seeds: Sequence[int],
    work_dir: Path,
    settings: RecordSettings,
    name: str = "",
    component: str = "transformer",
    progress: Progress | None = None,
) -> Recording:
    """Run a pipeline densely and record what every head does, by step group and layer.

    Of every group a few steps are observed, in both guidance branches. The first observed call of a group and
    layer decides the axis orders and pattern classes and measures the precisions; all observed calls give
    mass and log-sum-exp. Templates are tried on calls that no mask was drawn from: with several prompts on
    all but the first, with masks of the prompts before; with one prompt on all observed steps of a group but
    the first, with masks of that one. After the first prompt, every layer is perturbed once per group.

    After every prompt the sums so far are written into ``work_dir``. Called again with the same arguments,
    after whatever ended it, it goes on with the next prompt; the result is the same, bit for bit where the
    device's kernels are, but for ``seconds`` and ``peak_bytes``.

    Args:
        pipe: a diffusers pipeline, with nothing attached.
        calls: keyword arguments of its ``__call__``, one mapping per prompt: one size and one
            ``num_inference_steps`` for all; without generator and output type.
        seeds: of the start noise, one per call.
        work_dir: folder for what must outlive the process; made where it is missing.
        settings: step groups, and what to look at.
        name: what to call the model; the pipeline's own path when empty.
        component: which transformer; "transformer_2" for the second expert of Wan 2.2.
        progress: told how far it is.

    Raises:
        ValueError: for arguments that do not fit together, an unknown model, a ``work_dir`` of another
            recording, or a pipeline whose attention cannot be observed at the steps asked for.
    """
    steps = checked_steps(calls, seeds, settings)
    transformer = _component(pipe, component)
    adapter = find_adapter(transformer)
    attention = adapter.attention_layers(transformer)
    name = name or str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)
    model = model_facts(transformer, attention, name=name, family=adapter.family, component=component)
    arguments = record_arguments(transformer, pipe.scheduler, model, calls, seeds, settings)
    path = Path(work_dir) / FILE
    sums = Sums.load(path, arguments)
    done = 0 if sums is None else sums.prompts
    per_prompt = model.layers * sum(map(len, settings.observed_steps))
    extra = model.layers * len(settings.groups) * settings.sensitivity
    progress = progress or _Silent()
    progress.start(len(calls) * per_prompt + extra, done * per_prompt + (extra if done else 0))
    for call, seed in list(zip(calls, seeds, strict=True))[done:]:
        began, memory = time.perf_counter(), PeakMemory(_device(pipe))
        sums = record_prompt(pipe, transformer, call, seed, model, settings, len(calls) > 1, sums, progress)
        sums.seconds += time.perf_counter() - began
        sums.peak_bytes = max(filter(None, (sums.peak_bytes, memory.extra_bytes())), default=None)
        sums.save(path, arguments)
    assert sums is not None
    scheduler = type(pipe.scheduler).__name__
    schedule = ScheduleFacts(scheduler=scheduler, num_steps=steps, groups=settings.groups)
    return recording_of(sums, model, schedule, calibration_of(calls, seeds), settings.templates)


def _component(pipe: Any, name: str) -> nn.Module:
    found = transformers_of(pipe)
    if isinstance(pipe, nn.Module) or name not in found:
        raise ValueError(
            f"{type(pipe).__name__} has no {name!r} to record: give a pipeline with {sorted(found)}"
        )
    return found[name]


def _device(pipe: Any) -> torch.device:
    return torch.device(getattr(pipe, "_execution_device", "cpu"))
