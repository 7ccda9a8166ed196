"""Moving rows: permute and restore with an order per head."""

from __future__ import annotations

from functools import partial

import torch

from dit_sparse.kernels import permute_rows, restore_rows
from gpu_bench.harness import Row, Settings, benchmark, random_qkv


@benchmark("rows")
def bench_rows(settings: Settings) -> list[Row]:
    """Permute and restore with an order per head, as a share of plain copy bandwidth (read + write)."""
    rows: list[Row] = []
    for name, shape in settings.shapes.items():
        rows += row_moves(name, shape, settings)
    return rows


def row_moves(name: str, shape: tuple[int, int, int], settings: Settings) -> list[Row]:
    """Copy, permute and restore at one shape (tokens, heads, head size)."""
    tokens, heads, dim = shape
    x = random_qkv(tokens, heads, dim, settings.device)[0]
    order = torch.rand(1, heads, tokens, device=settings.device).argsort(dim=-1)
    target = torch.empty_like(x)
    moved = 2 * x.numel() * x.element_size()
    copy_ms = settings.time(partial(target.copy_, x))
    rows: list[Row] = [
        {"shape": name, "kernel": "copy", "ms": round(copy_ms, 4), "GB/s": round(moved / copy_ms / 1e6)}
    ]
    runs = {"permute": partial(permute_rows, x, order), "restore": partial(restore_rows, x, order)}
    for kernel, run in runs.items():
        elapsed = settings.time(run)
        row: Row = {"shape": name, "kernel": kernel, "ms": round(elapsed, 4)}
        rows.append(row | {"GB/s": round(moved / elapsed / 1e6), "of_copy": round(copy_ms / elapsed, 2)})
    return rows
