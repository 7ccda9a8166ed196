"""What all training stages share: wall-clock budget, JSON log, checkpoints, an average of the weights."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .profiling import profile_steps

LOG_FILE = "train_log.jsonl"

# A step gets (progress in [0, 1], step number); it returns device scalars to log and the number of samples.
Step = Callable[[float, int], tuple[dict[str, Tensor], int]]


class OutOfTime(Exception):  # noqa: N818
    """The time that this call may take is over; everything is saved."""


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Workspace:
    """A work folder: checkpoints, the log, and how the run behaves."""

    folder: Path
    device: torch.device
    compile: bool = False
    graphs: bool = False  # record steps as CUDA graphs
    log_every_s: float = 5.0
    checkpoint_every_s: float = 60.0
    free_warmup: bool = False  # trial runs: compilation does not count against the budget
    profile_steps: int = 0  # profile a stage for so many steps instead of training it
    stop_after_s: float = float("inf")
    started: float = field(default_factory=time.monotonic)

    def stop_if_late(self, needed_s: float = 0.0) -> None:
        """Raise OutOfTime if less than `needed_s` is left of `stop_after_s`."""
        if time.monotonic() - self.started + needed_s >= self.stop_after_s:
            raise OutOfTime

    def log(self, **values: Any) -> None:
        """Append one line of JSON to the log and print it."""
        line = json.dumps({"t": round(time.monotonic() - self.started, 1), **values})
        print(line, flush=True)
        with (self.folder / LOG_FILE).open("a") as file:
            file.write(line + "\n")

    def checkpoint(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write atomically: an interrupted write leaves the previous checkpoint."""
        path = self.checkpoint(name)
        partial = path.with_suffix(".partial")
        torch.save(content, partial)
        os.replace(partial, path)

    def load(self, name: str) -> dict[str, Any] | None:
        path = self.checkpoint(name)
        return torch.load(path, map_location=self.device, weights_only=True) if path.exists() else None

    def is_done(self, name: str, parts: Mapping[str, Stateful]) -> bool:
        """Whether a stage is finished; if so, load `parts` of its checkpoint."""
        saved = self.load(name)
        if saved is None or not saved["done"] or self.profile_steps:
            return False
        for key, part in parts.items():
            part.load_state_dict(saved["parts"][key])
        return True

    def autocast(self) -> torch.autocast:
        """bf16 on a GPU; float32 on a CPU, where bf16 is slow."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def learning_rate(
    progress: float, step: int, hold: float = 0.5, start: float = 1.0, end: float = 0.0
) -> float:
    """Linear warm-up over 100 steps, `start` until the share `hold` of the budget, then linearly to `end`."""
    decay = max(0.0, (progress - hold) / max(1 - hold, 1e-6))
    return min(1.0, (step + 1) / 100) * (start + (end - start) * min(decay, 1.0))


class Average:
    """Exponential moving average of parameters, in their own precision."""

    def __init__(self, params: Iterable[Tensor], decay: float) -> None:
        self.params = list(params)
        self.shadow = [p.detach().clone() for p in self.params]
        self.decay = decay
        self.rate = torch.zeros((), device=self.params[0].device)  # read by update()

    def set_step(self, step: int) -> None:
        """Follow the parameters faster during the first steps."""
        self.rate.fill_(1 - min(self.decay, (step + 1) / (step + 10)))

    @torch.no_grad()
    def update(self) -> None:
        difference = torch._foreach_sub(self.params, self.shadow)
        torch._foreach_mul_(difference, self.rate)
        torch._foreach_add_(self.shadow, difference)

    @torch.no_grad()
    def copy_to_params(self) -> None:
        torch._foreach_copy_(self.params, self.shadow)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self.shadow, state["shadow"])


class Pace:
    """Keeps Python at most `ahead` steps before the GPU, so that the clock tells where training is."""

    def __init__(self, device: torch.device, ahead: int = 2) -> None:
        self.enabled, self.ahead = device.type == "cuda", ahead
        self.events: deque[torch.cuda.Event] = deque()

    def step(self) -> None:
        if not self.enabled:
            return
        event = torch.cuda.Event()
        event.record()
        self.events.append(event)
        if len(self.events) > self.ahead:
            self.events.popleft().synchronize()


def run_stage(
    work: Workspace,
    name: str,
    budget_s: float,
    step: Step,
    parts: Mapping[str, Stateful],
    warm_steps: int = 1,
) -> None:
    """Repeat `step` until the budget is spent; log, checkpoint, and go on where an interrupted run stopped.

    The first `warm_steps` steps compile and record; they count against the budget unless `free_warmup`.

    Raises:
        OutOfTime: the workspace's time is over; the stage is saved and can go on in another call.
    """
    if work.profile_steps:
        _profile(work, name, step, warm_steps)
        return
    spent, index = 0.0, 0
    saved = work.load(name)
    if saved is not None:
        for key, part in parts.items():
            part.load_state_dict(saved["parts"][key])
        spent, index = float(saved["spent_s"]), int(saved["steps"])
        work.log(stage=name, resumed_at_step=index, spent_s=round(spent, 1))
        if saved["done"]:
            return
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def save(done: bool) -> None:
        state = {key: part.state_dict() for key, part in parts.items()}
        work.save(name, {"parts": state, "spent_s": spent, "steps": index, "done": done})

    begin = time.monotonic()
    for _ in range(warm_steps):
        step(spent / budget_s, index)
        index += 1
    work.synchronize()
    warm_s = time.monotonic() - begin
    spent += 0.0 if work.free_warmup else warm_s

    clock = last_log = last_save = start = time.monotonic()
    sums: dict[str, Tensor] = {}
    pace = Pace(work.device)
    counted, samples, total = 0, 0, 0
    while spent < budget_s:
        losses, seen = step(min(spent / budget_s, 1.0), index)
        for key, value in losses.items():
            sums[key] = sums[key] + value if key in sums else value
        index, counted, samples, total = index + 1, counted + 1, samples + seen, total + seen
        pace.step()
        now = time.monotonic()
        spent, clock = spent + now - clock, now
        if now - last_log >= work.log_every_s:
            means = {key: round(float(value) / counted, 5) for key, value in sums.items()}  # synchronises
            rate = round(samples / (time.monotonic() - last_log), 1)
            work.log(stage=name, step=index, progress=round(spent / budget_s, 3), samples_per_s=rate, **means)
            sums, counted, samples, last_log = {}, 0, 0, time.monotonic()
        if now - last_save >= work.checkpoint_every_s:
            save(done=False)
            last_save = time.monotonic()
        if now - work.started >= work.stop_after_s:
            save(done=False)
            raise OutOfTime
    work.synchronize()
    rate = round(total / max(time.monotonic() - start, 1e-9), 1)
    memory = torch.cuda.max_memory_allocated() / 2**30 if work.device.type == "cuda" else 0.0
    work.log(
        stage=name,
        finished=True,
        steps=index,
        first_steps_s=round(warm_s, 1),
        samples_per_s=rate,
        gib=round(memory, 1),
    )
    save(done=True)


def _profile(work: Workspace, name: str, step: Step, warm_steps: int) -> None:
    index = 0

    def one() -> int:
        nonlocal index
        _, samples = step(0.0, index)
        index += 1
        return samples

    begin = time.monotonic()
    for _ in range(warm_steps + 2):
        one()
    work.synchronize()
    work.log(profiled=name, first_steps_s=round(time.monotonic() - begin, 1))
    profile_steps(name, one, work.profile_steps, work.device)
