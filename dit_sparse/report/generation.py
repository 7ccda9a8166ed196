"""Run a pipeline once from a seed and measure it: end to end, per step, inside the denoiser, memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from dit_sparse.kernels.peak_memory import peak_bytes, reset_peak
from dit_sparse.report.capabilities import capabilities
from dit_sparse.report.clock import Clock, StepCallback, Stopwatch
from dit_sparse.report.density import head_choices
from dit_sparse.report.metrics import Frames
from dit_sparse.report.parts import ATTENTION, COMPILED, LINEAR, NOT_ASKED, NOT_SEEN, Parts, is_compiled
from dit_sparse.report.schema import HeadChoices


@dataclass(frozen=True)
class Run:
    """One finished generation. Of prompts that ran in one batch, each has its share of all times.

    Args:
        frames: float32 ``[F, H, W, 3]`` in [0, 1], as the pipeline gave them.
        end_to_end_s: text encoding, denoising and decoding.
        denoise_s: from the start of the first denoiser call to the end of the last step.
        transformer_s: inside the denoiser's forward alone.
        step_s: seconds of every step; empty when the pipeline has no step callback.
        attention_s, linear_s: of ``transformer_s``, as :mod:`dit_sparse.report.parts` takes them; None where
            they were not measured.
        step_transformer_s, step_attention_s, step_linear_s: these by step; empty where ``step_s`` is or where
            they were not measured.
        stages: of a sparse run's ``attention_s``, seconds in all and by step; empty where not measured.
        parts_unmeasured: why ``attention_s`` is None.
        peak_memory_bytes: see :func:`dit_sparse.kernels.peak_memory.peak_bytes`.
        stats: ``Handle.stats()`` of a sparse run, None of a dense one.
        choices: what a profile chose for the heads of a sparse run.
    """

    frames: Frames
    end_to_end_s: float
    denoise_s: float
    transformer_s: float
    step_s: tuple[float, ...]
    attention_s: float | None = None
    linear_s: float | None = None
    step_transformer_s: tuple[float, ...] = ()
    step_attention_s: tuple[float, ...] = ()
    step_linear_s: tuple[float, ...] = ()
    stages: Mapping[str, tuple[float, tuple[float, ...]]] = field(default_factory=dict)
    parts_unmeasured: str | None = None
    peak_memory_bytes: int | None = None
    stats: Any = None
    choices: tuple[HeadChoices, ...] = ()

    @property
    def kernel(self) -> str:
        """Kernels of the sparse calls, joined by "+"; "dense" where none was sparse."""
        backends = self.stats.backends if self.stats is not None else []
        return "+".join(name for name in backends if name != "dense") or "dense"


def timed_run(
    pipe: Any,
    call: Mapping[str, Any],
    *,
    seed: int,
    handle: Any = None,
    measure_parts: bool = False,
    on_step: StepCallback | None = None,
) -> Run:
    """:func:`timed_batch` of one prompt; ``seed`` of its generator."""
    return timed_batch(
        pipe, call, seeds=(seed,), handle=handle, measure_parts=measure_parts, on_step=on_step
    )[0]


def timed_batch(
    pipe: Any,
    call: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    handle: Any = None,
    measure_parts: bool = False,
    on_step: StepCallback | None = None,
) -> list[Run]:
    """Call the pipeline once with fresh CPU generators and measure it.

    Args:
        pipe: a diffusers pipeline.
        call: keyword arguments of its ``__call__``, without generator, output type and callbacks; several
            prompts make a batch.
        seeds: of the generators, one per prompt; the same seed gives the same start noise on every device
            and in every batch.
        handle: of the sparse attention that is enabled on ``pipe``; its records become ``Run.stats``.
        measure_parts: also time attention and linear layers. Without a handle nothing sparse may be enabled
            then: torch's attention function is wrapped for the time of the run.
        on_step: called after every step, where the pipeline offers a callback.

    Returns:
        One entry per seed. Seconds are the call's divided by the seeds; memory, densities and kernels are the
        call's.

    Raises:
        ValueError: when the pipeline's output does not hold frames for every seed.
    """
    device = torch.device(getattr(pipe, "_execution_device", "cpu"))
    clock = Clock(Stopwatch(device), on_step)
    parts, compiled = Parts(clock), measure_parts and is_compiled(pipe)
    extra: dict[str, Any] = (
        {"callback_on_step_end": clock.after_step} if capabilities(pipe).step_callback else {}
    )
    reset_peak(device)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with ExitStack() as stack:
        stack.enter_context(clock.attached(pipe))
        if measure_parts and not compiled:
            stack.enter_context(parts.attached(pipe, handle))
        start = clock.watch.now()
        output = pipe(
            **call, **extra, generator=generators if len(seeds) > 1 else generators[0], output_type="np"
        )
        end_to_end = clock.watch.now() - start
    videos = videos_of(output)
    if len(videos) != len(seeds):
        raise ValueError(
            f"{len(seeds)} seeds need as many prompts, {type(pipe).__name__} gave {len(videos)} videos"
        )
    share = 1.0 / len(seeds)
    denoise, attention = clock.denoise_seconds(), parts.seconds(ATTENTION)
    linear = parts.seconds(LINEAR)
    unmeasured = NOT_ASKED if not measure_parts else COMPILED if compiled else NOT_SEEN
    whole = Run(
        frames=videos[0],
        end_to_end_s=end_to_end * share,
        denoise_s=(end_to_end if denoise is None else denoise) * share,
        transformer_s=clock.seconds(clock.calls) * share,
        step_s=_scaled(clock.step_seconds(), share),
        attention_s=None if attention is None else attention * share,
        linear_s=None if linear is None else linear * share,
        step_transformer_s=_scaled(clock.by_step(clock.calls), share),
        step_attention_s=_scaled(parts.by_step(ATTENTION), share),
        step_linear_s=_scaled(parts.by_step(LINEAR), share),
        stages={
            name: (total * share, _scaled(steps, share)) for name, (total, steps) in parts.stages().items()
        },
        parts_unmeasured=unmeasured if attention is None else None,
        peak_memory_bytes=peak_bytes(device),
        stats=None if handle is None else handle.stats(),
        choices=() if handle is None else head_choices(handle.config),
    )
    return [replace(whole, frames=frames) for frames in videos]


def videos_of(output: Any) -> list[Frames]:
    """Frames ``[F, H, W, 3]`` float32 of every video in a pipeline output; an image counts as one frame.

    Raises:
        ValueError: for an output with neither ``frames`` nor ``images``.
    """
    if (videos := getattr(output, "frames", None)) is not None:
        return [np.asarray(video, dtype=np.float32) for video in videos]
    if (images := getattr(output, "images", None)) is not None:
        return [np.asarray(image, dtype=np.float32)[None] for image in images]
    raise ValueError(f"{type(output).__name__} holds neither frames nor images")


def _scaled(values: Iterable[float], factor: float) -> tuple[float, ...]:
    return tuple(value * factor for value in values)
