"""What the tuning benchmarks share: all kernels compiled at once, then one row per configuration.

Compiling takes seconds and timing milliseconds, so processes compile side by side first. Triton keeps what
they compile on disk, and token counts are not specialised: a short sequence compiles the kernel of a long
one. A configuration that fails there costs its own row, not the process that measures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpu_bench.harness import Row, Settings, error_note, measure, told

if TYPE_CHECKING:
    from dit_sparse.kernels.triton_tiles import TileConfig

Case = tuple[Hashable, ...]
Tiles = tuple[int, int, int, int, bool, bool, int | None, bool]
"""The fields of a ``TileConfig``, which can only be imported where Triton is installed."""
Choices = dict[int, tuple[Tiles, ...]]
"""What to try, by head size."""
WARM_TOKENS = 520
"""Tokens of the sequences that compile the kernels: five blocks, the last one ragged."""
TIME_SHARE = 0.3
"""Of the time for a figure: there are many, and they need to rank only."""


def _run_one(run: Callable[..., object], case: Case) -> None:
    run(*case)
    torch.cuda.synchronize()


def _run_all(
    run: Callable[..., object], cases: list[Case], workers: int, each: int | None
) -> dict[Case, str]:
    """Notes of the cases that failed."""
    failed: dict[Case, str] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=each) as pool:
        waiting: dict[Case, Future[None]] = {case: pool.submit(_run_one, run, case) for case in cases}
        for case, future in waiting.items():
            try:
                future.result()
            except Exception as error:  # of any kind: what the compiler refuses, what the GPU refuses
                failed[case] = error_note(error)
    return failed


def compile_all(run: Callable[..., object], cases: Iterable[Case], settings: Settings) -> dict[Case, str]:
    """Run every case once, in as many processes as there are cores, so that this one finds it compiled.

    Args:
        run: a function of a module, called with the elements of a case: it makes its own small tensors.
        cases: what differs; picklable and hashable.
        settings: on a device other than "cuda" there is nothing to compile.

    Returns:
        Why a case failed, for those that did.
    """
    todo = list(dict.fromkeys(cases))
    if settings.device != "cuda" or not todo:
        return {}
    workers = min(len(todo), os.cpu_count() or 1)
    failed = _run_all(run, todo, workers, None)
    # A crash on the GPU takes later cases of its process along: each of them gets a process of its own.
    return _run_all(run, list(failed), min(len(failed), workers), 1) if failed else {}


def tiles(
    tile_m: int,
    tile_n: int,
    warps: int,
    stages: int = 3,
    *,
    tma: bool = True,
    overlap: bool = False,
    registers: int | None = None,
    split: bool = False,
) -> Tiles:
    """A configuration to try."""
    return tile_m, tile_n, warps, stages, tma, overlap, registers, split


def as_config(chosen: Tiles | None) -> TileConfig | None:
    """What a launch takes; None is the default."""
    if chosen is None:
        return None
    from dit_sparse.kernels.triton_tiles import TileConfig

    return TileConfig(*chosen)


def columns(chosen: Tiles | None) -> Row:
    """What a table shows of a configuration."""
    if chosen is None:
        return {"tile": "default"}
    tile_m, tile_n, warps, stages, tma, overlap, registers, split = chosen
    named = {"tma": tma, "overlap": overlap, "split": split}
    options = " ".join(name for name, on in named.items() if on)
    return {
        "tile": f"{tile_m}x{tile_n}",
        "warps": warps,
        "stages": stages,
        "registers": registers,
        "options": options,
    }


@torch.no_grad()
def tuned(
    row: Row,
    run: Callable[[], Tensor],
    expected: Tensor,
    failure: str | None,
    settings: Settings,
    flops: float,
) -> Row:
    """``row`` with time, rate and the largest difference to ``expected``, what the default configuration
    gives, as a share of the largest output: a fast kernel that is wrong shows."""
    if failure is not None:
        return told(row | {"ms": None, "tflops": None, "note": failure})
    row = measure(row, run, settings, flops, TIME_SHARE)
    if row["ms"] is None:
        return told(row)
    difference = (run() - expected).abs().amax() / expected.abs().amax()
    return told(row | {"max_error": float(f"{difference.item():.2g}")})


def ranked(rows: list[Row], *keys: str) -> list[Row]:
    """By these columns, then the fastest first."""
    return sorted(rows, key=lambda row: (*(row[key] for key in keys), -(row["tflops"] or 0)))  # type: ignore[operator, arg-type]
