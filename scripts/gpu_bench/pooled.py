"""Queries against mean keys: compensation, mean-key mass, pooling; and exact mass and errors of blocks."""

from __future__ import annotations

from functools import partial

import torch

from dit_sparse.kernels import (
    block_mass,
    block_sparse_attention,
    compensate,
    mean_key_mass,
    pool_blocks,
    skip_error,
)
from dit_sparse.kernels.dispatch import use_triton
from dit_sparse.layout import ceil_div
from gpu_bench.harness import (
    BLOCK,
    Row,
    Settings,
    benchmark,
    fastest,
    measure,
    measure_dense,
    random_map,
    random_qkv,
)

DENSITY = 0.25
TUNED_SHAPES = ((75_600, 4, 128), (32_760, 12, 128), (17_776, 12, 64))
TUNED_TILES = ((128, 128, 8), (128, 64, 8), (128, 64, 4), (128, 32, 8), (64, 128, 4), (64, 64, 4))
"""(query rows, mean keys, warps) that "tune_pooled" tries."""


@benchmark("pooled")
def bench_pooled(settings: Settings) -> list[Row]:
    """Compensation, mean-key mass and pooling, as a share of the best dense kernel's time."""
    rows: list[Row] = []
    for name, shape in settings.shapes.items():
        rows += pooled_rows(name, shape, settings)
    return rows


def pooled_flops(tokens: int, heads: int, dim: int) -> float:
    """Two products of every query with every mean: keys and values in compensation, keys twice in mass."""
    return 4.0 * tokens * ceil_div(tokens, BLOCK[1]) * dim * heads


def pooled_rows(name: str, shape: tuple[int, int, int], settings: Settings) -> list[Row]:
    """Every operation, by implementation, at one shape (tokens, heads, head size)."""
    tokens, heads, dim = shape
    torch.manual_seed(0)
    q, k, v = random_qkv(tokens, heads, dim, settings.device)
    base: Row = {"shape": name, "N": tokens, "H": heads, "D": dim}
    rows = measure_dense(q, k, v, base, settings)
    best = fastest(rows)
    block_map = random_map(tokens, heads, DENSITY, settings.device)
    out, lse = block_sparse_attention(q, k, v, block_map, return_lse=True)
    density = round(block_map.density().item(), 4)
    flops = pooled_flops(*shape)
    for impl in ("triton", "reference") if use_triton(q, "auto") else ("reference",):
        runs = {
            "compensate": partial(compensate, q, k, v, out, lse, block_map, scale=dim**-0.5, impl=impl),
            "mean_key_mass": partial(mean_key_mass, q, k, BLOCK, impl=impl),
        }
        for kernel, run in runs.items():
            row = base | {"kernel": f"{kernel} {impl}"}
            row |= {"density": density} if kernel == "compensate" else {}
            rows.append(measure(row, run, settings, flops))
        if impl == "triton":  # the definition takes seconds at these lengths
            run = partial(block_mass, q, k, lse, BLOCK, impl=impl)
            products = 2.0 * tokens * tokens * dim * heads
            rows.append(measure(base | {"kernel": f"block_mass {impl}"}, run, settings, products))
            some = (q[:, ::4], k, v, out[:, ::4], lse[..., ::4])  # a quarter of the rows stands for a block
            run = partial(skip_error, *some, (BLOCK[0] // 4, BLOCK[1]), impl=impl)
            name = f"skip_error {impl}, 1/4 of the rows"
            rows.append(measure(base | {"kernel": name}, run, settings, products / 2))
        elapsed = settings.time(partial(pool_blocks, k, BLOCK[1], impl=impl))
        read = k.numel() * k.element_size() / elapsed / 1e6
        rows.append(base | {"kernel": f"pool_blocks {impl}", "ms": round(elapsed, 3), "GB/s": round(read)})
    for row in rows:
        if best and row.get("ms"):
            share = 100 * row["ms"] / best["ms"]  # type: ignore[operator]
            row["percent_of_dense"] = round(share, 2)
    return rows


@benchmark("tune_pooled", default=False)
def bench_tune_pooled(settings: Settings) -> list[Row]:
    """Compensation and mass over tile configurations: the source of their configuration tables."""
    from dit_sparse.kernels import triton_pooled
    from dit_sparse.kernels.triton_tiles import TileConfig

    rows: list[Row] = []
    for tokens, heads, dim in TUNED_SHAPES:
        q, k, v = random_qkv(tokens, heads, dim, settings.device)
        block_map = random_map(tokens, heads, DENSITY, settings.device)
        # Any output and log-sum-exp take the same time to merge.
        first = (v, torch.zeros(1, heads, tokens, device=settings.device))
        flops, scale = pooled_flops(tokens, heads, dim), dim**-0.5
        for tile_m, tile_n, warps in TUNED_TILES:
            for stages in (2, 3):
                config = TileConfig(tile_m, tile_n, warps, stages)
                runs = {
                    "compensate": partial(
                        triton_pooled.attend, q, k, v, block_map, scale=scale, first=first, config=config
                    ),
                    "mean_key_mass": partial(triton_pooled.mass, q, k, BLOCK, scale=scale, config=config),
                }
                for kernel, run in runs.items():
                    row: Row = {"kernel": kernel, "N": tokens, "D": dim, "tile": f"{tile_m}x{tile_n}"}
                    row |= {"warps": warps, "stages": stages}
                    rows.append(measure(row, run, settings, flops))
    return sorted(rows, key=lambda row: (row["kernel"], row["N"], -(row["tflops"] or 0)))  # type: ignore[operator]
