"""Which denoising step and which guidance branch a forward belongs to, from what every pipeline shows of
itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from dit_sparse.layout import Branch


@dataclass(frozen=True)
class Moment:
    """Where a forward stands in its generation.

    Args:
        step: index of the denoising step from 0.
        num_steps: steps of the generation, None if unknown.
        call: index of the forward within the step.
        new_generation: whether this forward is the first of a generation.
    """

    step: int
    num_steps: int | None
    call: int
    new_generation: bool


class Follower(Protocol):
    """A transformer that takes part in the generations of a pipeline."""

    def start(self) -> None:
        """A generation starts, whichever transformer runs first."""
        ...

    def rest(self) -> None:
        """Another transformer runs for the first time in this generation."""
        ...


class StepTracker:
    """Follows a generation forward by forward.

    The step is the scheduler's ``step_index`` (relative to its ``begin_index``), else the position of the
    current timestep in ``scheduler.timesteps``, else a count of the timesteps seen. The branch follows from
    the order of the forwards within a step: every pipeline with separate forwards runs the conditional one
    first. The order is used rather than the name of diffusers' cache context, because only some pipelines
    pass one and the context reaches registered model hooks only, which model CPU offload drops after the
    first run.

    A generation starts when the scheduler got new timesteps, or without a scheduler when the timestep rises.

    Args:
        scheduler: the pipeline's scheduler or a function that returns it; None for a bare transformer.

    Attributes:
        followers: told what concerns them all; held weakly.
    """

    def __init__(self, scheduler: Any = None) -> None:
        self._scheduler = scheduler
        self._timesteps: Tensor | None = None
        self._timestep: float | None = None
        self._step = -1
        self._call = 0
        self._begin: int | None = None
        self._guessed = False
        self.followers: WeakSet[Follower] = WeakSet()
        self._ran: WeakSet[Follower] = WeakSet()

    def advance(self, timestep: Any, runs: Follower | None = None) -> Moment:
        """Take note of a forward.

        Args:
            timestep: number or tensor of any shape, one value per sample or token.
            runs: whose forward it is. The others are told when it is its first in a generation, so that
                experts that take turns once, as those of Wan 2.2, can give back what they carry.
        """
        scheduler = self._scheduler() if callable(self._scheduler) else self._scheduler
        timesteps = getattr(scheduler, "timesteps", None)
        num_steps: int | None
        if (
            isinstance(timesteps, Tensor)
            and getattr(scheduler, "num_inference_steps", None) is not None
            # A scheduler at its end is not what drives this loop: another pipeline has its own.
            and (getattr(scheduler, "step_index", None) or 0) < len(timesteps)
        ):
            new = timesteps is not self._timesteps
            self._timesteps = timesteps
            step, num_steps = self._scheduled(scheduler, timesteps, timestep, new)
        else:
            step, new = self._count(timestep)
            num_steps = None
        self._call = 0 if new or step != self._step else self._call + 1
        self._step = step
        self._tell(runs, new)
        return Moment(step, num_steps, self._call, new)

    def reset(self) -> None:
        """The next forward starts a generation."""
        self._timesteps, self._timestep, self._begin = None, None, None
        self._step, self._call = -1, 0

    def _tell(self, runs: Follower | None, new: bool) -> None:
        if new:
            self._ran.clear()
            for follower in self.followers:
                follower.start()
        if runs is not None and runs not in self._ran:
            self._ran.add(runs)
            for follower in self.followers:
                if follower is not runs:
                    follower.rest()

    def _scheduled(self, scheduler: Any, timesteps: Tensor, timestep: Any, new: bool) -> tuple[int, int]:
        if new:  # video-to-video starts in the middle of the schedule: steps count from there
            self._begin, self._guessed = getattr(scheduler, "begin_index", None), False
        index = getattr(scheduler, "step_index", None)
        if index is None:  # most schedulers find their index in their first step, some have none
            index = _position(timesteps, timestep)
            if self._begin is None:
                self._begin, self._guessed = index, True
        elif self._begin is None:  # attached in the middle of a generation
            self._begin = 0
        elif self._guessed:
            self._begin, self._guessed = index - 1, False
        return max(0, index - self._begin), max(1, len(timesteps) - self._begin)

    def _count(self, timestep: Any) -> tuple[int, bool]:
        value = _scalar(timestep)
        previous, self._timestep = self._timestep, value
        if previous is None or value > previous:
            return 0, True
        return self._step + (value != previous), False


def branch_of(moment: Moment, guidance: str) -> Branch:
    """The guidance branch of a forward, by its order within the step."""
    if guidance == "batched":
        return "batched"
    return "conditional" if moment.call % 2 == 0 else "unconditional"


def _position(timesteps: Tensor, timestep: Any) -> int:
    """Index of the step at ``timestep``, which pipelines cast to the latents' type; 0 where there is none, as
    in pipelines that scale it."""
    value = _scalar(timestep)
    dtype = timestep.dtype if isinstance(timestep, Tensor) else timesteps.dtype
    distance = (timesteps.to(dtype).double().cpu() - value).abs()
    nearest = int(distance.argmin())
    return nearest if distance[nearest] <= 1e-2 * max(1.0, abs(value)) else 0


def _scalar(timestep: Any) -> float:
    """The (largest) timestep of the batch as a number. Waits for the device: only forwards without step index
    need it, as those of the first step."""
    return float(timestep.max()) if isinstance(timestep, torch.Tensor) else float(timestep)
