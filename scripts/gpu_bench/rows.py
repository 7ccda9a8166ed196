"""Moving rows: q, k and v into an order per head, and the output back."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from dit_sparse.kernels import permute_rows, permute_together, restore_rows
from gpu_bench.harness import Row, Settings, benchmark, random_qkv

CALLS = 50


@benchmark("rows")
def bench_rows(settings: Settings) -> list[Row]:
    """Permute q, k and v and restore an output, as a share of plain copy bandwidth (read + write).

    Times are the device's, with the host ahead; beside them what the host needs to launch the call.
    """
    rows: list[Row] = []
    for name, shape in settings.shapes.items():
        rows += row_moves(name, shape, settings)
    return rows


def row_moves(name: str, shape: tuple[int, int, int], settings: Settings) -> list[Row]:
    """Copy, permute and restore at one shape (tokens, heads, head size)."""
    tokens, heads, dim = shape
    qkv = random_qkv(tokens, heads, dim, settings.device)
    order = torch.rand(1, heads, tokens, device=settings.device).argsort(dim=-1)
    targets = [torch.empty_like(x) for x in qkv]

    def copy(count: int) -> None:
        for target, x in list(zip(targets, qkv))[:count]:
            target.copy_(x)

    def apart() -> None:
        for x in qkv:
            permute_rows(x, order)

    runs: dict[tuple[str, int], Callable[[], object]] = {
        ("copy q, k, v", 3): partial(copy, 3),
        ("permute q, k, v together", 3): partial(permute_together, qkv, order),
        ("permute q, k, v one by one", 3): apart,
        ("copy q", 1): partial(copy, 1),
        ("permute q", 1): partial(permute_rows, qkv[0], order),
        ("restore the output", 1): partial(restore_rows, qkv[0], order),
    }
    rows: list[Row] = []
    copied: dict[int, float] = {}
    for (kernel, count), run in runs.items():
        elapsed = settings.ahead(run, settings.budget_ms)
        moved = 2 * count * qkv[0].numel() * qkv[0].element_size()
        row: Row = {"shape": name, "kernel": kernel, "ms": round(elapsed, 4)}
        row |= {"GB/s": round(moved / elapsed / 1e6)}
        if kernel.startswith("copy"):
            copied[count] = elapsed
        else:
            row |= {"of_copy": round(copied[count] / elapsed, 2)}
        rows.append(row | {"host us": round(host_us(run), 1)})
    return rows


def host_us(run: Callable[[], object]) -> float:
    """Microseconds of the host for a call that it does not wait for: mean over :data:`CALLS`."""
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(CALLS):
        run()
    return (time.perf_counter() - started) / CALLS * 1e6
