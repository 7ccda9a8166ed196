"""How kernels are timed: medians on random data, the cache cleared between calls, warm-up excluded."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_sparse.kernels import flash4
from dit_sparse.kernels.dispatch import Request, resolve_backend
from dit_sparse.layout import BlockMap, ceil_div

Timer = Callable[[Callable[[], object], float], float]
"""``(run, budget in ms) -> median ms``, like :func:`median_ms`."""
BLOCK = (128, 128)
FLUSH_BYTES = 256 * 2**20
"""More than any L2 cache holds."""


def median_ms(run: Callable[[], object], budget_ms: float, *, ahead_cycles: int = 0) -> float:
    """Median milliseconds of ``run`` by CUDA events: two warm-up calls, then 5 to 100 timed ones within the
    budget.

    A 256 MB buffer is cleared before every call, so that no call finds its data in the L2 cache.

    Args:
        run: what is timed.
        budget_ms: time to spend on the repetitions.
        ahead_cycles: clock cycles that the device is kept busy with before every call.
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
        if ahead_cycles:
            torch.cuda._sleep(ahead_cycles)
        start.record()
        run()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in times)


AHEAD_CYCLES = 10_000_000
"""About 6 ms: more than the host takes to launch the kernels of a sparse attention call."""


def device_ms(run: Callable[[], object], budget_ms: float) -> float:
    """:func:`median_ms` with the host ahead of the device, as in a model whose other layers keep it busy.

    Many small kernels then take the device's time for them, not the host's for launching them.
    """
    return median_ms(run, budget_ms, ahead_cycles=AHEAD_CYCLES)


def wall_ms(run: Callable[[], object], budget_ms: float) -> float:
    """Median milliseconds of ``run`` by the wall clock, for a CPU: one warm-up call, then 3 to 100 timed ones
    within the budget."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget_ms and len(times) < 100):
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def random_map(
    tokens: int,
    heads: int,
    density: float,
    device: str = "cuda",
    block_size: tuple[int, int] = BLOCK,
    *,
    spread: float = 0.0,
) -> BlockMap:
    """A block map of random blocks.

    Args:
        tokens, heads: N and H.
        density: fraction of blocks, in (0, 1].
        device: of the map.
        block_size: (query, key) block in tokens.
        spread: rows keep from ``1 - spread`` to ``1 + spread`` times that, evenly distributed; at 0 all
            equally many.
    """
    if density == 1:
        return BlockMap.full(1, heads, tokens, tokens, block_size, torch.device(device))
    rows, columns = (ceil_div(tokens, size) for size in block_size)
    ranks = torch.rand(1, heads, rows, columns, device=device).argsort(dim=-1).argsort(dim=-1)
    share = density * (1 + spread * (2 * torch.rand(1, heads, rows, 1, device=device) - 1))
    mask = ranks < (share * columns).round().clamp(min=1)
    return BlockMap.from_mask(mask, tokens, tokens, block_size)


def random_qkv(
    tokens: int, heads: int, dim: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    """Standard normal q, k, v ``[1, N, H, D]``."""
    return [torch.randn(1, tokens, heads, dim, device=device, dtype=dtype) for _ in range(3)]


def refusal(
    impl: str,
    dim: int,
    device: str = "cuda",
    precision: str = "native",
    dtype: torch.dtype = torch.bfloat16,
    block_size: tuple[int, int] = BLOCK,
) -> str | None:
    """Why a sparse backend cannot run here, or None."""
    request = Request(torch.device(device), dtype, dim, block_size, by_name=True, precision=precision)
    try:
        resolve_backend(impl, request)
    except ValueError as reason:
        return str(reason)
    return None


def dense_baselines(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
    """The dense kernels of this machine, by name; on a CPU the one that it has."""
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
    if refusal("flash4", q.shape[-1], dtype=q.dtype) is None:
        runs["dense FA4"] = lambda: flash4.dense(q, k, v)
    return runs
