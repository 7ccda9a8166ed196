"""What the benchmarks share: settings, registry, timer, random data and the row of a result table.

Rates count the computed blocks only and stand beside the dense baselines timed in the same process. Times
are medians over CUDA events, warm-up excluded, on random data, with the L2 cache cleared between calls.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_sparse.kernels.dispatch import Request, resolve_backend
from dit_sparse.layout import BlockMap, ceil_div

Row = dict[str, object]
Timer = Callable[[Callable[[], object], float], float]
"""``(run, budget in ms) -> median ms``, like :func:`median_ms`."""

DENSITIES = (1.0, 0.5, 0.25, 0.1)
BLOCK = (128, 128)
SHAPES = {
    "Wan-1.3B 480p": (32_760, 12, 128),
    "Wan-14B 720p, 8 of 40 heads": (75_600, 8, 128),
    "CogVideoX 480p, 8 of 48 heads": (17_776, 8, 64),
}
"""(tokens, heads, head size)"""
FLUSH_BYTES = 256 * 2**20
"""More than any L2 cache holds."""


def median_ms(run: Callable[[], object], budget_ms: float) -> float:
    """Median milliseconds of ``run`` by CUDA events: two warm-up calls, then 5 to 100 timed ones within the
    budget.

    A 256 MB buffer is cleared before every call, so that no call finds its data in the L2 cache.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
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


def random_map(tokens: int, heads: int, density: float, device: str = "cuda") -> BlockMap:
    """A block map whose rows all keep the same number of blocks, chosen at random per head and row."""
    blocks = ceil_div(tokens, BLOCK[0])
    if density == 1:
        return BlockMap.full(1, heads, tokens, tokens, BLOCK, torch.device(device))
    scores = torch.rand(1, heads, blocks, blocks, device=device)
    kept = scores.topk(max(1, round(density * blocks)), dim=-1).indices
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, kept, True)
    return BlockMap.from_mask(mask, tokens, tokens, BLOCK)


def attention_flops(block_map: BlockMap, dim: int) -> float:
    """4 D for each kept (query, key) pair; ragged blocks by the tokens they have."""
    mask = block_map.to_mask()
    starts = torch.arange(0, block_map.num_keys, BLOCK[1], device=mask.device)
    lengths = (block_map.num_keys - starts).clamp(max=BLOCK[1]).double()
    return 4 * dim * (lengths @ mask.double() @ lengths).sum().item()


def random_qkv(tokens: int, heads: int, dim: int, device: str = "cuda") -> list[Tensor]:
    """Standard normal bfloat16 q, k, v ``[1, N, H, D]``."""
    return [torch.randn(1, tokens, heads, dim, device=device, dtype=torch.bfloat16) for _ in range(3)]


def refusal(impl: str, dim: int, device: str = "cuda", precision: str = "native") -> str | None:
    """Why a sparse backend cannot run here, or None."""
    request = Request(torch.device(device), torch.bfloat16, dim, BLOCK, by_name=True, precision=precision)
    try:
        resolve_backend(impl, request)
    except ValueError as reason:
        return str(reason)
    return None


def dense_baselines(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
    """The dense bf16 kernels of this machine, by name; on a CPU the one that it has."""
    heads_first = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))

    def sdpa(*backends: SDPBackend) -> Callable[[], object]:
        def run() -> Tensor:
            with sdpa_kernel(list(backends)):
                return torch.nn.functional.scaled_dot_product_attention(*heads_first)

        return run

    if not q.is_cuda:
        return {"dense CPU (SDPA)": sdpa(SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)}
    runs = {
        "dense cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION),
        "dense flash (SDPA)": sdpa(SDPBackend.FLASH_ATTENTION),
    }
    if refusal("flash4", q.shape[-1]) is None:
        from dit_sparse.kernels import flash4

        runs["dense FA4"] = lambda: flash4.dense(q, k, v)
    return runs


def error_note(error: BaseException) -> str:
    """An exception in one short line of a table."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def measure(row: Row, run: Callable[[], object], settings: Settings, flops: float) -> Row:
    """``row`` with ms and TFLOP/s, or with the error that stopped it."""
    try:
        elapsed = settings.time(run)
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
