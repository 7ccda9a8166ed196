"""Queries against mean keys: compensation, mean-key mass, pooling; and exact mass and errors of blocks."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from dit_sparse.kernels import (
    block_mass,
    block_sparse_attention,
    compensate,
    mean_key_mass,
    pool_blocks,
    skip_error,
)
from dit_sparse.kernels.dispatch import use_triton
from dit_sparse.layout import BlockMap, ceil_div
from gpu_bench.attention import TUNED_SHAPES
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
from gpu_bench.tuning import WARM_TOKENS, Tiles, as_config, columns, compile_all, ranked, tiles, tuned

DENSITY = 0.25
TUNED_TILES: dict[str, tuple[Tiles, ...]] = {
    "compensate": (
        tiles(128, 128, 8, 3, tma=False),
        tiles(128, 64, 8, 2, tma=False),
        tiles(128, 64, 8, 2, tma=False, registers=128),
        tiles(128, 64, 8, 3, tma=False, registers=128),
        tiles(128, 32, 8, 2, tma=False, registers=128),
        tiles(128, 64, 4, 2, tma=False),
        tiles(64, 128, 4, 1, tma=False),
        tiles(64, 64, 4, 2, tma=False),
        tiles(64, 64, 4, 3, tma=False),
    ),
    "mean_key_mass": (
        tiles(128, 128, 8, 2, tma=False),
        tiles(128, 64, 8, 2, tma=False),
        tiles(128, 64, 8, 3, tma=False),
        tiles(128, 64, 4, 3, tma=False),
        tiles(64, 128, 4, 2, tma=False),
        tiles(64, 64, 4, 2, tma=False),
    ),
}
"""What "tune_pooled" tries: query rows by mean keys, which are loaded without descriptors."""


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


def run_tuned(kernel: str, dim: int, chosen: Tiles) -> None:
    """One operation with one configuration, on a short sequence."""
    q, k, v = random_qkv(WARM_TOKENS, 2, dim)
    _operation(kernel, q, k, v, _some_lse(q), random_map(WARM_TOKENS, 2, DENSITY), chosen)


def _some_lse(q: Tensor) -> Tensor:
    """Any log-sum-exp takes the same time to merge; this one lets about half of either output through."""
    return torch.full((1, q.shape[2], q.shape[1]), math.log(q.shape[1]), device=q.device)


def _operation(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, block_map: BlockMap, chosen: Tiles | None
) -> Tensor:
    from dit_sparse.kernels import triton_compensation, triton_pooled

    scale, config = q.shape[-1] ** -0.5, as_config(chosen)
    if kernel == "mean_key_mass":
        return triton_pooled.mass(q, k, BLOCK, scale=scale, config=config)
    return triton_compensation.attend(q, k, v, block_map, scale=scale, first=(v, lse), config=config)[0]


@benchmark("tune_pooled", default=False)
def bench_tune_pooled(settings: Settings) -> list[Row]:
    """Compensation and mass over tile configurations: the source of their configuration tables."""
    return tune_rows(TUNED_SHAPES, TUNED_TILES, settings)


def tune_rows(
    shapes: tuple[tuple[int, int, int], ...], choices: dict[str, tuple[Tiles, ...]], settings: Settings
) -> list[Row]:
    """The default and every configuration at these shapes (tokens, heads, head size)."""
    dims = dict.fromkeys(shape[2] for shape in shapes)
    cases = [(kernel, dim, chosen) for kernel in choices for dim in dims for chosen in choices[kernel]]
    failures = compile_all(run_tuned, cases, settings)
    rows: list[Row] = []
    for tokens, heads, dim in shapes:
        torch.manual_seed(0)
        q, k, v = random_qkv(tokens, heads, dim, settings.device)
        block_map = random_map(tokens, heads, DENSITY, settings.device)
        flops, lse = pooled_flops(tokens, heads, dim), _some_lse(q)
        for kernel in choices:
            expected = _operation(kernel, q, k, v, lse, block_map, None)
            for chosen in (None, *choices[kernel]):
                row: Row = {"kernel": kernel, "N": tokens, "D": dim} | columns(chosen)
                run = partial(_operation, kernel, q, k, v, lse, block_map, chosen)
                failure = failures.get((kernel, dim, chosen))
                rows.append(tuned(row, run, expected, failure, settings, flops))
    return ranked(rows, "kernel", "D", "N")
