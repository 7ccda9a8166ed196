"""Run a pipeline once from a seed and time it: end to end, per denoising step, and inside the denoiser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from dit_sparse.report.capabilities import capabilities, denoisers
from dit_sparse.report.metrics import Frames

StepCallback = Callable[[int, int | None], None]
"""Told the finished steps and, where the pipeline knows, how many there are."""


@dataclass(frozen=True)
class Run:
    """One finished generation.

    Args:
        frames: float32 ``[F, H, W, 3]`` in [0, 1], as the pipeline gave them.
        end_to_end_s: text encoding, denoising and decoding.
        denoise_s: from the start of the first denoiser call to the end of the last step.
        transformer_s: inside the denoiser's forward alone.
        step_s: seconds of every step; empty when the pipeline has no step callback.
        peak_memory_bytes: most GPU memory allocated during the run; None on the CPU.
        stats: ``Handle.stats()`` of a sparse run, None of a dense one.
    """

    frames: Frames
    end_to_end_s: float
    denoise_s: float
    transformer_s: float
    step_s: tuple[float, ...]
    peak_memory_bytes: int | None = None
    stats: Any = None


@dataclass
class _Clock:
    """Time marks of one run. GPU work is asynchronous: denoiser calls use events, steps a synchronise."""

    device: torch.device
    on_step: StepCallback | None = None
    first_call: float | None = None
    last_call: float | None = None
    step_ends: list[float] = field(default_factory=list)
    calls: list[tuple[Any, Any]] = field(default_factory=list)

    def now(self) -> float:
        """Wall-clock seconds once the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def before_denoiser(self, *_: Any) -> None:
        """Forward pre-hook of a denoiser."""
        if self.first_call is None:
            self.first_call = self.now()
        self.calls.append((self._mark(), None))

    def after_denoiser(self, *_: Any) -> None:
        """Forward hook of a denoiser."""
        self.calls[-1] = (self.calls[-1][0], self._mark())
        self.last_call = time.perf_counter()

    def after_step(self, pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """``callback_on_step_end`` of the pipeline; changes nothing."""
        self.step_ends.append(self.now())
        if self.on_step is not None:
            self.on_step(step + 1, getattr(pipe, "num_timesteps", None))
        return tensors

    def step_seconds(self) -> tuple[float, ...]:
        """Duration of every step."""
        if self.first_call is None:
            return ()
        marks = [self.first_call, *self.step_ends]
        return tuple(end - start for start, end in pairwise(marks))

    def denoise_seconds(self) -> float | None:
        """First denoiser call to the end of the last step; None when no denoiser ran."""
        end = self.step_ends[-1] if self.step_ends else self.last_call
        return None if self.first_call is None or end is None else end - self.first_call

    def transformer_seconds(self) -> float:
        """Time inside the denoiser's forward; call after a synchronise."""
        finished = [(start, end) for start, end in self.calls if end is not None]
        if self.device.type == "cuda":
            return sum(start.elapsed_time(end) for start, end in finished) / 1e3
        return sum(end - start for start, end in finished)

    @contextmanager
    def attached(self, pipe: Any) -> Iterator[None]:
        """Watch the pipeline's denoisers while the context is open."""
        handles = []
        for module in denoisers(pipe).values():
            handles.append(module.register_forward_pre_hook(self.before_denoiser))
            handles.append(module.register_forward_hook(self.after_denoiser))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def timed_run(pipe: Any, call: Mapping[str, Any], *, seed: int, on_step: StepCallback | None = None) -> Run:
    """Call the pipeline once with a fresh CPU generator and measure it.

    Args:
        pipe: a diffusers pipeline.
        call: keyword arguments of its ``__call__``, without generator, output type and callbacks.
        seed: of the generator; the same seed gives the same start noise on every device.
        on_step: called after every step, where the pipeline offers a callback.

    Raises:
        ValueError: when the pipeline's output holds no frames.
    """
    device = torch.device(getattr(pipe, "_execution_device", "cpu"))
    clock = _Clock(device, on_step)
    extra: dict[str, Any] = (
        {"callback_on_step_end": clock.after_step} if capabilities(pipe).step_callback else {}
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    with clock.attached(pipe):
        start = clock.now()
        output = pipe(**call, **extra, generator=generator, output_type="np")
        end_to_end = clock.now() - start
    denoise = clock.denoise_seconds()
    return Run(
        frames=first_video(output),
        end_to_end_s=end_to_end,
        denoise_s=end_to_end if denoise is None else denoise,
        transformer_s=clock.transformer_seconds(),
        step_s=clock.step_seconds(),
        peak_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def first_video(output: Any) -> Frames:
    """Frames ``[F, H, W, 3]`` float32 of the first video in a pipeline output; an image counts as one frame.

    Raises:
        ValueError: for an output with neither ``frames`` nor ``images``.
    """
    if (videos := getattr(output, "frames", None)) is not None:
        return np.asarray(videos[0], dtype=np.float32)
    if (images := getattr(output, "images", None)) is not None:
        return np.asarray(images[:1], dtype=np.float32)
    raise ValueError(f"{type(output).__name__} holds neither frames nor images")
