"""What the benchmarks share: settings, registry, timer, random data and the row of a result table.

Rates count the computed blocks only and stand beside the dense baselines timed in the same process. Times
are medians over CUDA events, warm-up excluded, on random data, with the L2 cache cleared between calls.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.layout import BlockMap
from dit_sparse.profiler.timing import (
    BLOCK,
    Timer,
    dense_baselines,
    device_ms,
    median_ms,
    random_map,
    random_qkv,
    refusal,
)

__all__ = [
    "BENCHMARKS",
    "BLOCK",
    "DENSITIES",
    "GROUPS",
    "Row",
    "SHAPES",
    "Settings",
    "Timer",
    "attention_flops",
    "benchmark",
    "dense_baselines",
    "environment",
    "error_note",
    "fastest",
    "measure",
    "measure_dense",
    "median_ms",
    "print_table",
    "random_map",
    "random_qkv",
    "refusal",
]

Row = dict[str, object]

DENSITIES = (1.0, 0.5, 0.25, 0.1)
SHAPES = {
    "Wan-1.3B 480p": (32_760, 12, 128),
    "Wan-14B 720p, 8 of 40 heads": (75_600, 8, 128),
    "CogVideoX 480p, 8 of 48 heads": (17_776, 8, 64),
}
"""(tokens, heads, head size)"""


@dataclass(frozen=True)
class Settings:
    """What the command line chose.

    Args:
        quick: only the small shapes, and less time for each figure.
        device: where the data lives; the command line knows "cuda" only.
        timer: how a call is timed; another one lets the benchmarks run where there are no CUDA events.
    """

    quick: bool
    device: str = "cuda"
    timer: Timer = median_ms

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """The shapes of the kernel benchmarks."""
        return {n: s for n, s in SHAPES.items() if not (self.quick and s[0] > 40_000)}

    @property
    def budget_ms(self) -> float:
        """Time to spend on the repetitions of one figure."""
        return 60.0 if self.quick else 200.0

    def time(self, run: Callable[[], object], share: float = 1.0) -> float:
        """Median milliseconds of ``run``; it may take ``share`` of the budget."""
        return self.timer(run, share * self.budget_ms)

    @property
    def ahead(self) -> Timer:
        """A timer with the host ahead, where there is a device to be ahead of."""
        return device_ms if self.timer is median_ms else self.timer


Bench = Callable[[Settings], list[Row]]
BENCHMARKS: dict[str, tuple[Bench, bool]] = {}
"""(function, whether it runs without being named), by name."""
GROUPS: dict[str, list[str]] = {}
"""Names for several benchmarks at once; those that are not ``default`` belong to none."""


def benchmark(name: str, default: bool = True, group: str | None = "kernels") -> Callable[[Bench], Bench]:
    """Register a benchmark.

    Args:
        name: what ``--bench`` calls it; also the key of its rows in the results.
        default: whether it runs without being named.
        group: a name that runs it together with others; None for none.

    Raises:
        ValueError: if a benchmark or a group has this name.
    """

    def register(function: Bench) -> Bench:
        if name in BENCHMARKS or name in GROUPS or group in BENCHMARKS:
            raise ValueError(f"benchmark {name!r} (group {group!r}) is named like another benchmark or group")
        BENCHMARKS[name] = (function, default)
        if default and group is not None:
            GROUPS.setdefault(group, []).append(name)
        return function

    return register


def attention_flops(block_map: BlockMap, dim: int) -> float:
    """4 D for each kept (query, key) pair; ragged blocks by the tokens they have."""
    mask = block_map.to_mask()
    starts = torch.arange(0, block_map.num_keys, BLOCK[1], device=mask.device)
    lengths = (block_map.num_keys - starts).clamp(max=BLOCK[1]).double()
    return 4 * dim * (lengths @ mask.double() @ lengths).sum().item()


def told(row: Row) -> Row:
    """The row, which goes to stderr: long benchmarks show how far they are, and lose nothing if killed."""
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def error_note(error: BaseException) -> str:
    """An exception in one short line of a table."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def measure(row: Row, run: Callable[[], object], settings: Settings, flops: float, share: float = 1.0) -> Row:
    """``row`` with ms and TFLOP/s, or with the error that stopped it; ``share`` of the budget."""
    try:
        elapsed = settings.time(run, share)
    except Exception as error:  # one backend's failure must not cost the table
        return row | {"ms": None, "tflops": None, "note": error_note(error)}
    return row | {"ms": round(elapsed, 3), "tflops": round(flops / elapsed / 1e9, 1)}


def measure_dense(q: Tensor, k: Tensor, v: Tensor, row: Row, settings: Settings) -> list[Row]:
    """``row`` once for each of :func:`dense_baselines`."""
    _, tokens, heads, dim = q.shape
    flops = 4.0 * dim * tokens**2 * heads * q.shape[0]
    return [
        measure(row | {"kernel": kernel, "density": 1.0}, run, settings, flops)
        for kernel, run in dense_baselines(q, k, v).items()
    ]


def fastest(rows: list[Row]) -> Row | None:
    """The row with the fewest ms among those that ran; None when none did."""
    ran = [row for row in rows if row.get("ms")]
    return min(ran, key=lambda row: row["ms"], default=None)  # type: ignore[arg-type, return-value]


def print_table(rows: list[Row]) -> None:
    """Aligned columns, in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [
        columns,
        *([str(row.get(c, "") if row.get(c) is not None else "-") for c in columns] for row in rows),
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def environment() -> Row:
    """GPU and versions."""
    gpu = torch.cuda.is_available()
    found: Row = {
        "gpu": torch.cuda.get_device_name() if gpu else "none",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
    }
    for package in ("torch", "triton", "diffusers", "flash-attn-4", "flash-kmeans", "sageattention"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
