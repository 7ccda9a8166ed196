"""Time marks of one generation: steps by the wall clock, work inside of them by the device's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from dit_sparse.adapters.attach import denoisers_of

StepCallback = Callable[[int, int | None], None]
"""Told the finished steps and, where the pipeline knows, how many there are."""

Mark = tuple[int, Any, Any]
"""Step, start and end of something that ran inside of a denoiser; the end is None while it runs."""


@dataclass
class Stopwatch:
    """Intervals of device work. GPU work is asynchronous: CUDA events mark it without waiting for it."""

    device: torch.device

    def mark(self) -> Any:
        """A point in time, to be handed to :meth:`seconds`."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Time between two marks; on a GPU only after it has been waited for."""
        return start.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - start

    def now(self) -> float:
        """Wall-clock seconds once the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class Clock:
    """Marks of one run: its steps, and every call of a denoiser."""

    watch: Stopwatch
    on_step: StepCallback | None = None
    first_call: float | None = None
    last_call: float | None = None
    step_ends: list[float] = field(default_factory=list)
    calls: list[Mark] = field(default_factory=list)

    @property
    def in_denoiser(self) -> bool:
        """Whether a denoiser is running at the moment."""
        return bool(self.calls) and self.calls[-1][2] is None

    @property
    def step(self) -> int:
        """Index of the step that runs."""
        return len(self.step_ends)

    def before_denoiser(self, *_: Any) -> None:
        """Forward pre-hook of a denoiser."""
        if self.first_call is None:
            self.first_call = self.watch.now()
        self.calls.append((self.step, self.watch.mark(), None))

    def after_denoiser(self, *_: Any) -> None:
        """Forward hook of a denoiser."""
        step, start, _ = self.calls[-1]
        self.calls[-1] = (step, start, self.watch.mark())
        self.last_call = time.perf_counter()

    def after_step(self, pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """``callback_on_step_end`` of the pipeline; changes nothing."""
        self.step_ends.append(self.watch.now())
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

    def seconds(self, marks: Iterable[Mark]) -> float:
        """Sum of marked intervals; call after a synchronise."""
        return sum(self.watch.seconds(start, end) for _, start, end in marks if end is not None)

    def by_step(self, marks: Iterable[Mark]) -> tuple[float, ...]:
        """The same for every finished step."""
        sums = [0.0] * len(self.step_ends)
        for step, start, end in marks:
            if step < len(sums) and end is not None:
                sums[step] += self.watch.seconds(start, end)
        return tuple(sums)

    @contextmanager
    def attached(self, pipe: Any) -> Iterator[None]:
        """Watch the pipeline's denoisers while the context is open."""
        handles = []
        for module in denoisers_of(pipe).values():
            handles.append(module.register_forward_pre_hook(self.before_denoiser))
            handles.append(module.register_forward_hook(self.after_denoiser))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
