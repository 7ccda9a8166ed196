"""What limits a training step: its time, the share of it in which the GPU works, the costliest operations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_ROWS = 14


def profile_steps(name: str, step: Callable[[], int], steps: int, device: torch.device) -> None:
    """Print at most 40 lines on `steps` calls of `step`, which returns its number of samples."""
    cuda = device.type == "cuda"

    def run() -> tuple[float, int]:
        begin = time.perf_counter()
        samples = sum(step() for _ in range(steps))
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin, samples

    wall, samples = run()
    print(f"{name}: {1e3 * wall / steps:.1f} ms a step, {samples / wall:.0f} samples/s", flush=True)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as trace:
        traced, _ = run()
    events: Any = trace.key_averages()
    kernels = [e for e in events if e.device_type == DeviceType.CUDA]
    ops = [e for e in events if e.device_type == DeviceType.CPU]
    busy = sum(e.self_device_time_total for e in kernels) / 1e6
    lines = [
        f"GPU: {1e3 * busy / steps:.1f} ms of kernels a step, busy {busy / wall:.0%} of the time; traced, "
        f"{busy / traced:.0%} of {1e3 * traced / steps:.1f} ms a step"
    ]
    for title, group, key in (
        ("kernels", kernels, "self_device_time_total"),
        ("CPU operations", ops, "self_cpu_time_total"),
    ):
        group.sort(key=lambda e: -getattr(e, key))
        lines.append(f"top {title}, ms a step | calls a step | name")
        for e in group[:_ROWS]:
            lines.append(f"{getattr(e, key) / 1e3 / steps:10.2f} {e.count / steps:10.1f}  {e.key[:90]}")
    print("\n".join(lines), flush=True)
