#!/usr/bin/env python
"""Check the GPU kernels and measure them: the GPU tests first, then the tables, in one command.

    python scripts/gpu_check.py                      tests, then every default benchmark
    python scripts/gpu_check.py --bench kernels      tests, then the kernel tables
    python scripts/gpu_check.py --no-tests --bench tune --quick

Every rate counts the computed blocks only and stands beside the dense baselines timed in the same process.
Block maps are random at a given density: a kernel's speed, not a method's. Times are medians over CUDA
events, warm-up excluded, on random data. Exit code 1 when a test fails; then nothing is measured.

A new benchmark is a function ``(settings) -> rows`` under ``@benchmark(name)``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_sparse.kernels import block_sparse_attention, kmeans, permute_rows, restore_rows
from dit_sparse.kernels.dispatch import Request, installed, resolve_backend
from dit_sparse.layout import BlockMap, ceil_div

Row = dict[str, object]
ROOT = Path(__file__).resolve().parents[1]
DENSITIES = (1.0, 0.5, 0.25, 0.1)
BLOCK = (128, 128)
SHAPES = {
    "Wan-1.3B 480p": (32_760, 12, 128),
    "Wan-14B 720p, 8 of 40 heads": (75_600, 8, 128),
    "CogVideoX 480p, 8 of 48 heads": (17_776, 8, 64),
}
"""(tokens, heads, head size)"""


@dataclass(frozen=True)
class Settings:
    """What the command line chose. ``quick`` halves the shapes and the time spent on each figure."""

    quick: bool

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """The shapes to measure."""
        return {n: s for n, s in SHAPES.items() if not (self.quick and s[0] > 40_000)}

    @property
    def budget_ms(self) -> float:
        """Time to spend on the repetitions of one figure."""
        return 60.0 if self.quick else 200.0


TUNED_TILES = ((128, 128, 8), (128, 64, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4))
"""(query rows, keys, warps) that "tune" tries."""
GROUPS = {"kernels": ("attention", "rows", "kmeans")}
"""Names for several benchmarks at once."""
BENCHMARKS: dict[str, tuple[Callable[[Settings], list[Row]], bool]] = {}


def benchmark(name: str, default: bool = True) -> Callable[[Callable], Callable]:
    """Register a benchmark; those that are not ``default`` run only when named."""

    def register(function: Callable[[Settings], list[Row]]) -> Callable:
        BENCHMARKS[name] = (function, default)
        return function

    return register


def median_ms(run: Callable[[], object], budget_ms: float) -> float:
    """Median milliseconds of ``run`` by CUDA events: two warm-up calls, then 5 to 100 timed ones within the
    budget.

    A 256 MB buffer is cleared before every call, so that no call finds its data in the L2 cache.
    """
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    estimate_ms = max((time.perf_counter() - started) * 1e3, 0.02)
    times = []
    for _ in range(max(5, min(100, int(budget_ms / estimate_ms)))):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        run()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in times)


def random_map(tokens: int, heads: int, density: float) -> BlockMap:
    """A block map whose rows all keep the same number of blocks, chosen at random per head and row."""
    blocks = ceil_div(tokens, BLOCK[0])
    if density == 1:
        return BlockMap.full(1, heads, tokens, tokens, BLOCK, torch.device("cuda"))
    scores = torch.rand(1, heads, blocks, blocks, device="cuda")
    kept = scores.topk(max(1, round(density * blocks)), dim=-1).indices
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, kept, True)
    return BlockMap.from_mask(mask, tokens, tokens, BLOCK)


def attention_flops(block_map: BlockMap, dim: int) -> float:
    """4 D for each kept (query, key) pair; ragged blocks by the tokens they have."""
    starts = torch.arange(0, block_map.num_keys, BLOCK[1], device="cuda")
    lengths = (block_map.num_keys - starts).clamp(max=BLOCK[1]).double()
    return 4 * dim * (lengths @ block_map.to_mask().double() @ lengths).sum().item()


def random_qkv(tokens: int, heads: int, dim: int) -> list[Tensor]:
    """Standard normal bfloat16 q, k, v ``[1, N, H, D]``."""
    return [torch.randn(1, tokens, heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3)]


def refusal(impl: str, dim: int) -> str | None:
    """Why a sparse backend cannot run here, or None."""
    try:
        resolve_backend(impl, Request(torch.device("cuda"), torch.bfloat16, dim, BLOCK, by_name=True))
    except ValueError as reason:
        return str(reason)
    return None


def dense_baselines(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
    """The dense kernels of this machine, by name."""
    heads_first = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))

    def sdpa(backend: SDPBackend) -> Callable[[], object]:
        def run() -> Tensor:
            with sdpa_kernel([backend]):
                return torch.nn.functional.scaled_dot_product_attention(*heads_first)

        return run

    runs = {
        "dense cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
        "dense flash (SDPA)": sdpa(SDPBackend.FLASH_ATTENTION),
    }
    if refusal("flash4", q.shape[-1]) is None:
        from dit_sparse.kernels import flash4

        runs["dense FA4"] = lambda: flash4.dense(q, k, v)
    return runs


def measure(row: Row, run: Callable[[], object], settings: Settings, flops: float) -> Row:
    """``row`` with ms and TFLOP/s, or with the error that stopped it."""
    try:
        elapsed = median_ms(run, settings.budget_ms)
    except Exception as error:  # one backend's failure must not cost the table
        return row | {"ms": None, "tflops": None, "note": f"{type(error).__name__}: {error}"[:160]}
    return row | {"ms": round(elapsed, 3), "tflops": round(flops / elapsed / 1e9, 1)}


@benchmark("attention")
def bench_attention(settings: Settings) -> list[Row]:
    """Block-sparse attention by backend and density, beside dense attention."""
    rows: list[Row] = []
    for name, (tokens, heads, dim) in settings.shapes.items():
        torch.manual_seed(0)
        q, k, v = random_qkv(tokens, heads, dim)
        shape: Row = {"shape": name, "N": tokens, "H": heads, "D": dim}
        dense = [
            measure(shape | {"kernel": kernel, "density": 1.0}, run, settings, 4.0 * dim * tokens**2 * heads)
            for kernel, run in dense_baselines(q, k, v).items()
        ]
        best = min((row["ms"] for row in dense if row["ms"]), default=None)  # type: ignore[type-var]
        sparse = []
        for density in DENSITIES:
            block_map = random_map(tokens, heads, density)
            flops = attention_flops(block_map, dim)
            for impl in ("flash4", "triton"):
                row = shape | {"kernel": f"sparse {impl}", "density": round(block_map.density().item(), 4)}
                reason = refusal(impl, dim)
                if reason:
                    sparse.append(row | {"note": reason})
                    continue

                run = partial(block_sparse_attention, q, k, v, block_map, impl=impl)
                sparse.append(measure(row, run, settings, flops))
        for row in dense + sparse:
            if best and row.get("ms"):
                row["speedup_vs_best_dense"] = round(best / row["ms"], 2)  # type: ignore[operator]
        rows += dense + sparse
    return rows


@benchmark("rows")
def bench_rows(settings: Settings) -> list[Row]:
    """Permute and restore with an order per head, as a share of plain copy bandwidth (read + write)."""
    rows: list[Row] = []
    for name, (tokens, heads, dim) in settings.shapes.items():
        x = random_qkv(tokens, heads, dim)[0]
        order = torch.rand(1, heads, tokens, device="cuda").argsort(dim=-1)
        target = torch.empty_like(x)
        moved = 2 * x.numel() * x.element_size()
        copy_ms = median_ms(partial(target.copy_, x), settings.budget_ms)
        runs = {"permute": partial(permute_rows, x, order), "restore": partial(restore_rows, x, order)}
        rows.append(
            {"shape": name, "kernel": "copy", "ms": round(copy_ms, 4), "GB/s": round(moved / copy_ms / 1e6)}
        )
        for kernel, run in runs.items():
            elapsed = median_ms(run, settings.budget_ms)
            rows.append(
                {
                    "shape": name,
                    "kernel": kernel,
                    "ms": round(elapsed, 4),
                    "GB/s": round(moved / elapsed / 1e6),
                }
                | {"of_copy": round(copy_ms / elapsed, 2)}
            )
    return rows


@benchmark("kmeans")
def bench_kmeans(settings: Settings) -> list[Row]:
    """Two Lloyd rounds from a warm start (so three assignments)."""
    rows: list[Row] = []
    for name, (tokens, heads, dim) in settings.shapes.items():
        x = random_qkv(tokens, heads, dim)[0]
        for clusters in (100, 300, 1000):
            warm = kmeans(x, clusters, iterations=1).centroids
            for impl in ("flash_kmeans", "reference"):
                if impl == "flash_kmeans" and not installed("flash_kmeans"):
                    continue

                run = partial(kmeans, x, clusters, centroids=warm, iterations=2, impl=impl)
                row: Row = {"shape": name, "H": heads, "clusters": clusters, "kernel": impl}
                rows.append(row | {"ms": round(median_ms(run, settings.budget_ms), 3)})
    return rows


@benchmark("tune", default=False)
def bench_tune(settings: Settings) -> list[Row]:
    """The Triton kernel over tile configurations at density 0.25: the source of its configuration table."""
    from dit_sparse.kernels import triton_forward

    hopper = torch.cuda.get_device_capability() >= (9, 0)
    rows: list[Row] = []
    for tokens, heads, dim in ((32_760, 4, 128), (17_776, 8, 64)):
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


def environment() -> Row:
    """GPU and versions."""
    found: Row = {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    for package in ("torch", "triton", "flash-attn-4", "flash-kmeans"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


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


def main() -> int:
    """Parse, test, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bench",
        nargs="*",
        choices=[*GROUPS, *BENCHMARKS],
        help="benchmarks or groups; default: all but tune",
    )
    parser.add_argument("--no-tests", action="store_true", help="skip the GPU tests (the output says so)")
    parser.add_argument("--quick", action="store_true", help="small shapes, short timings")
    parser.add_argument("--json", type=Path, help="write environment and rows to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_check needs a CUDA GPU; on a CPU run: pytest tests/kernels", file=sys.stderr)
        return 2
    env = environment()
    print(
        "  ".join(f"{name} {value}" for name, value in env.items()),
        "bfloat16",
        f"blocks {BLOCK[0]}x{BLOCK[1]}",
    )

    report: Row = {"command": sys.argv, "environment": env, "tests": "not run", "results": {}}
    if arguments.no_tests:
        print("GPU tests: NOT RUN")
    else:
        command = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "gpu"), "-q", "-rs", "--durations=5"]
        if subprocess.run(command, cwd=ROOT).returncode:
            print("GPU tests failed: nothing is measured", file=sys.stderr)
            return 1
        report["tests"] = "passed"

    chosen = arguments.bench or [name for name, (_, default) in BENCHMARKS.items() if default]
    names = dict.fromkeys(name for choice in chosen for name in GROUPS.get(choice, (choice,)))
    results: dict[str, list[Row]] = {}
    for name in names:
        run = BENCHMARKS[name][0]
        started = time.perf_counter()
        results[name] = run(Settings(arguments.quick))
        print(f"\n{name}: {(run.__doc__ or '').splitlines()[0]} ({time.perf_counter() - started:.0f} s)")
        print_table(results[name])
        torch.cuda.empty_cache()
    report["results"] = results
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
