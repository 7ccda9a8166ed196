"""Attention kernels by backend and density, beside the dense ones; the tile configurations of our kernel."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dit_sparse.kernels import block_sparse_attention
from dit_sparse.layout import BlockMap
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
from gpu_bench.tuning import (
    WARM_TOKENS,
    Choices,
    Tiles,
    as_config,
    columns,
    compile_all,
    ranked,
    tiles,
    tuned,
)

SPARSE = ("flash4", "triton")
TUNED_SHAPES = ((75_600, 4, 128), (32_760, 12, 128), (17_776, 12, 64))
EARLIER_TILES: Choices = dict.fromkeys(
    (64, 128),
    tuple(
        tiles(tile_m, tile_n, warps, stages, tma=False)
        for tile_m, tile_n, warps in ((128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4))
        for stages in (2, 3, 4)
    ),
)
"""What the tuning benchmarks of sparse attention try before Hopper."""
HOPPER_TILES: Choices = {
    128: (
        tiles(128, 128, 8, 2, overlap=True),
        tiles(128, 128, 8, 3, overlap=True),
        tiles(128, 128, 8, 4, overlap=True),
        tiles(128, 64, 8, 3, overlap=True),
        tiles(128, 64, 8, 4, overlap=True),
        tiles(128, 64, 8, 3, registers=128),
        tiles(64, 64, 4, 3, overlap=True),
        tiles(64, 128, 4, 3, overlap=True),
    ),
    64: (
        tiles(128, 128, 8, 3, overlap=True),
        tiles(128, 128, 4, 3),
        tiles(128, 64, 4, 3),
        tiles(128, 64, 4, 3, overlap=True),
        tiles(128, 64, 8, 3, registers=128),
        tiles(128, 64, 8, 3, overlap=True, registers=128),
        tiles(64, 128, 4, 3, overlap=True),
    ),
}
"""What "tune" tries on Hopper, by head size. The compiler spills at most a handful of registers in each; two
to four programs share a multiprocessor in those with short tiles or a limit on registers."""


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


def run_tuned(dim: int, chosen: Tiles) -> None:
    """The Triton kernel with one configuration, on a short sequence."""
    q, k, v = random_qkv(WARM_TOKENS, 2, dim)
    _forward(q, k, v, random_map(WARM_TOKENS, 2, 0.5), chosen)


def _forward(q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, chosen: Tiles | None) -> Tensor:
    from dit_sparse.kernels import triton_forward

    named = {"scale": q.shape[-1] ** -0.5, "return_lse": False, "config": as_config(chosen)}
    return triton_forward.forward(q, k, v, block_map, **named)[0]


@benchmark("tune", default=False)
def bench_tune(settings: Settings) -> list[Row]:
    """The Triton kernel over tile configurations at density 0.25: the source of its configuration table."""
    hopper = torch.cuda.get_device_capability() >= (9, 0)
    return tune_rows(TUNED_SHAPES, HOPPER_TILES if hopper else EARLIER_TILES, settings)


def tune_rows(shapes: tuple[tuple[int, int, int], ...], choices: Choices, settings: Settings) -> list[Row]:
    """The default and every configuration at these shapes (tokens, heads, head size)."""
    cases = [(dim, chosen) for dim in dict.fromkeys(shape[2] for shape in shapes) for chosen in choices[dim]]
    failures = compile_all(run_tuned, cases, settings)
    rows: list[Row] = []
    for tokens, heads, dim in shapes:
        torch.manual_seed(0)
        q, k, v = random_qkv(tokens, heads, dim, settings.device)
        block_map = random_map(tokens, heads, 0.25, settings.device)
        flops = attention_flops(block_map, dim)
        expected = _forward(q, k, v, block_map, None)
        for chosen in (None, *choices[dim]):
            row: Row = {"N": tokens, "D": dim} | columns(chosen)
            run = partial(_forward, q, k, v, block_map, chosen)
            rows.append(tuned(row, run, expected, failures.get((dim, chosen)), settings, flops))
    return ranked(rows, "D", "N")
