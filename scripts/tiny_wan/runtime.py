"""What all training stages share: wall-clock budget, JSON log, checkpoints, an average of the weights."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

# A step gets (progress in [0, 1], step number); it returns device scalars to log and the number of samples.
Step = Callable[[float, int], tuple[dict[str, Tensor], int]]


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Workspace:
    """A work folder: checkpoints, the log, and how the run behaves."""

    folder: Path
    device: torch.device
    compile: bool = False
    log_every_s: float = 5.0
    checkpoint_every_s: float = 90.0
    free_warmup: bool = False  # profiling: compilation does not count against the budget
    started: float = field(default_factory=time.monotonic)

    def log(self, **values: Any) -> None:
        """Append one line of JSON to the log and print it."""
        line = json.dumps({"t": round(time.monotonic() - self.started, 1), **values})
        print(line, flush=True)
        with (self.folder / "train_log.jsonl").open("a") as file:
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

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the parameters, faster during the first steps."""
        torch._foreach_lerp_(self.shadow, self.params, 1 - min(self.decay, (step + 1) / (step + 10)))

    @torch.no_grad()
    def copy_to_params(self) -> None:
        torch._foreach_copy_(self.params, self.shadow)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self.shadow, state["shadow"])


def run_stage(
    work: Workspace,
    name: str,
    budget_s: float,
    step: Step,
    parts: Mapping[str, Stateful],
    warm_steps: int = 1,
) -> None:
    """Repeat `step` until the budget is spent; log, checkpoint, and go on where an interrupted run stopped.

    The first `warm_steps` steps compile (one a shape); they count against the budget unless `free_warmup`.
    """
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
    counted, samples, total = 0, 0, 0
    while spent < budget_s:
        losses, seen = step(min(spent / budget_s, 1.0), index)
        for key, value in losses.items():
            sums[key] = sums[key] + value if key in sums else value
        index, counted, samples, total = index + 1, counted + 1, samples + seen, total + seen
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
