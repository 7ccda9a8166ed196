"""Settings with which the benchmarks run on a CPU, shared by their tests."""

import time
from pathlib import Path

from gpu_bench.harness import Settings

ROOT = Path(__file__).resolve().parents[1]


def wall_clock(run, budget_ms):
    """One call, in ms."""
    assert budget_ms > 0
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


CPU = Settings(quick=True, device="cpu", timer=wall_clock)
