"""Attention kernels by backend and density, beside the dense ones; the tile configurations of our kernel."""

from __future__ import annotations

from functools import partial

import torch

from dit_sparse.kernels import block_sparse_attention
from gpu_bench import baselines
from gpu_bench.harness import (
    DENSITIES,
    Row,
    Settings,
    attention_flops,
    benchmark,
    error_note,
    fastest,
    measure,
    measure_dense,
    random_map,
    random_qkv,
    refusal,
)

SPARSE = ("flash4", "triton")
TUNED_SHAPES = ((32_760, 4, 128), (17_776, 8, 64))
TUNED_TILES = ((128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4))
"""(query rows, keys, warps) that "tune" tries."""


@benchmark("attention")
def bench_attention(settings: Settings) -> list[Row]:
    """Block-sparse attention by backend and density, beside dense attention."""
    rows: list[Row] = []
    for name, shape in settings.shapes.items():
        rows += attention_rows(name, shape, settings)
    return rows


def attention_rows(name: str, shape: tuple[int, int, int], settings: Settings) -> list[Row]:
    """Every kernel at one shape (tokens, heads, head size)."""
    tokens, heads, dim = shape
    torch.manual_seed(0)
    q, k, v = random_qkv(tokens, heads, dim, settings.device)
    base: Row = {"shape": name, "N": tokens, "H": heads, "D": dim}
    rows = measure_dense(q, k, v, base, settings)
    best = fastest(rows)
    row = base | {"kernel": "dense sageattention (int8)", "density": 1.0}
    reason = baselines.sage_refusal(settings.device)
    flops = 4.0 * dim * tokens**2 * heads
    if reason:
        rows.append(row | {"note": reason})
    else:
        rows.append(_prepared(row, partial(baselines.sage_dense, q, k, v), settings, flops))
    for density in DENSITIES:
        block_map = random_map(tokens, heads, density, settings.device)
        flops = attention_flops(block_map, dim)
        kept: Row = {"density": round(block_map.density().item(), 4)}
        for impl in SPARSE:
            row = base | {"kernel": f"sparse {impl}"} | kept
            if reason := refusal(impl, dim, settings.device):
                rows.append(row | {"note": reason})
                continue
            run = partial(block_sparse_attention, q, k, v, block_map, impl=impl)
            rows.append(measure(row, run, settings, flops))
        row = base | {"kernel": "sparse FlexAttention"} | kept
        rows.append(_prepared(row, partial(baselines.flex_sparse, q, k, v, block_map), settings, flops))
    for row in rows:
        if best and row.get("ms"):
            row["speedup_vs_best_dense"] = round(best["ms"] / row["ms"], 2)  # type: ignore[operator]
    return rows


def _prepared(row: Row, prepare: partial, settings: Settings, flops: float) -> Row:
    """:func:`measure` of the call that ``prepare`` returns; what the preparation raises is noted as well."""
    try:
        run = prepare()
    except Exception as error:  # another library's trouble is no reason to lose our figures
        return row | {"ms": None, "tflops": None, "note": error_note(error)}
    return measure(row, run, settings, flops)


@benchmark("tune", default=False)
def bench_tune(settings: Settings) -> list[Row]:
    """The Triton kernel over tile configurations at density 0.25: the source of its configuration table."""
    from dit_sparse.kernels import triton_forward

    hopper = torch.cuda.get_device_capability() >= (9, 0)
    rows: list[Row] = []
    for tokens, heads, dim in TUNED_SHAPES:
        q, k, v = random_qkv(tokens, heads, dim)
        block_map = random_map(tokens, heads, 0.25)
        flops = attention_flops(block_map, dim)
        for tma in (True, False) if hopper else (False,):
            for tile_m, tile_n, warps in TUNED_TILES:
                for stages in (2, 3, 4, 5):
                    config = triton_forward.TileConfig(tile_m, tile_n, warps, stages, tma)

                    run = partial(
                        triton_forward.forward,
                        q,
                        k,
                        v,
                        block_map,
                        scale=dim**-0.5,
                        return_lse=False,
                        config=config,
                    )
                    row: Row = {"D": dim, "tile": f"{tile_m}x{tile_n}", "warps": warps}
                    row |= {"stages": stages, "tma": tma}
                    rows.append(measure(row, run, settings, flops))
    return sorted(rows, key=lambda row: (row["D"], -(row["tflops"] or 0)))  # type: ignore[operator]
