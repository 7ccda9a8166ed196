"""Measure a cost table on the device at hand."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch

from dit_sparse import kernels
from dit_sparse.context import PlanContext
from dit_sparse.corrections import CorrectionInput, LowRankResidual
from dit_sparse.kernels.dispatch import explain_backend
from dit_sparse.layout import BlockMap, Site, TokenLayout, pack_bits, unpack_bits
from dit_sparse.orderings import AXIS_ORDERS, axis_orders, with_text
from dit_sparse.profiler.cost_table import AttentionTime, CostTable, DenseTime, Planning, PlanningTime
from dit_sparse.profiler.timing import (
    BLOCK,
    Timer,
    dense_baselines,
    device_ms,
    random_map,
    random_qkv,
    wall_ms,
)
from dit_sparse.selectors.base import forced_pairs
from dit_sparse.selectors.spend import spend_by_head
from dit_sparse.state import LayerState

SPREAD = 0.75
"""Of the rows' numbers of blocks about their mean: a coefficient of variation of 0.43. Maps that the layers
of the embedded model learn have 0.25 to 0.61."""
DENSITIES = (0.05, 0.1, 0.25, 0.5, 1.0)
BUDGET_MS = 200.0
"""Time for the repetitions of one figure."""
EMULATED = ("gathered", "reference")
"""Backends that emulate low precision at no gain: not worth a row."""


def measure_cost(
    device: torch.device | str,
    layouts: TokenLayout | Sequence[TokenLayout],
    heads: int,
    head_dim: int,
    *,
    command: str,
    dtype: torch.dtype = torch.bfloat16,
    block_size: tuple[int, int] = BLOCK,
    densities: Sequence[float] = DENSITIES,
    precisions: Sequence[str] = ("native",),
    timer: Timer | None = None,
) -> CostTable:
    """Time block-sparse attention, the dense kernels and what planning costs, on random data.

    Rows of the maps keep unequally many blocks (:data:`SPREAD`), chosen at random; the log-sum-exp is
    returned, as heads that learn need it. Times are medians; the L2 cache is cleared between calls on a GPU.
    Two layouts or more also measure how times grow with the sequence.

    Args:
        device: "cuda" or "cpu".
        layouts: token grids of one sample; the times are of self-attention over their tokens.
        heads, head_dim: H and D.
        command: that measures, for the table.
        dtype: of q, k and v.
        block_size: (query, key) block in tokens.
        densities: fractions of blocks in (0, 1], two or more.
        precisions: of :data:`~dit_sparse.kernels.PRECISIONS`; others than "native" are left out where the
            device only emulates them.
        timer: ``(run, budget in ms) -> ms``; by default CUDA events with the host ahead; on a CPU the
            wall clock.

    Raises:
        ValueError: for fewer than two densities, or sizes that the kernels refuse.
    """
    device = torch.device(device)
    clock = timer or (device_ms if device.type == "cuda" else wall_ms)
    if len(set(densities)) < 2 or not all(0 < d <= 1 for d in densities):
        raise ValueError(f"densities must be two or more in (0, 1], got {tuple(densities)}")
    attention: list[AttentionTime] = []
    dense: list[DenseTime] = []
    planning: list[PlanningTime] = []
    for layout in (layouts,) if isinstance(layouts, TokenLayout) else layouts:
        tokens = layout.num_tokens
        q, k, v = random_qkv(tokens, heads, head_dim, str(device), dtype)
        for kernel, run in dense_baselines(q, k, v).items():
            dense.append(DenseTime(tokens=tokens, kernel=kernel, ms=clock(run, BUDGET_MS)))
        for density in sorted(set(densities)):
            block_map = random_map(tokens, heads, density, str(device), block_size, spread=SPREAD)
            # The map's own density: a row keeps whole blocks.
            kept = float(block_map.density())
            for precision in precisions:
                backend, _ = explain_backend(device, dtype, head_dim, block_size, precision)
                if precision != "native" and backend in EMULATED:
                    continue
                attend = partial(
                    kernels.block_sparse_attention,
                    *(q, k, v, block_map),
                    precision=precision,
                    return_lse=True,
                )
                ms = clock(attend, BUDGET_MS)
                attention.append(AttentionTime(tokens=tokens, density=kept, precision=precision, ms=ms))
        for what, run in planning_runs(layout, q, k, v, block_size).items():
            planning.append(PlanningTime(what=what, tokens=tokens, ms=clock(run, BUDGET_MS)))
    return CostTable(
        device=device_name(device),
        date=datetime.date.today().isoformat(),
        torch_version=torch.__version__,
        triton_version=_version("triton"),
        command=command,
        dtype=str(dtype).removeprefix("torch."),
        heads=heads,
        head_dim=head_dim,
        block_size=block_size,
        attention=tuple(attention),
        dense=tuple(dense),
        planning=tuple(planning),
    )


def planning_runs(
    layout: TokenLayout, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_size: tuple[int, int]
) -> dict[Planning, Callable[[], object]]:
    """What a call does besides attention, on q, k, v ``[1, N, H, D]``: the functions that a profile runs."""
    tokens, heads, device = layout.num_tokens, q.shape[2], q.device
    mask = random_map(tokens, heads, 0.25, str(device), block_size).to_mask()[0]
    bits, columns = pack_bits(mask), mask.shape[-1]
    scale, choice = q.shape[-1] ** -0.5, torch.arange(heads, device=device) % len(AXIS_ORDERS)
    most = max(1, mask[0].numel() // 4)
    pairs = torch.full((heads,), most, device=device)

    def forced() -> torch.Tensor:
        return forced_pairs(tokens, layout.video_tokens, layout.text_tokens, block_size, device)

    always = forced()  # making them is part of "map": a call does it once

    def score() -> torch.Tensor:
        mass = kernels.mean_key_mass(q, k, block_size, scale)
        return spend_by_head(-mass, always, pairs, most)

    def order() -> torch.Tensor:
        return with_text(axis_orders(layout.grid, choice)[0], layout)

    def reorder() -> torch.Tensor:
        rows = order()
        kernels.permute_together((q, k, v), rows)
        return kernels.restore_rows(q, rows)

    block_map = BlockMap.from_mask(mask[None], tokens, tokens, block_size)
    out, lse = kernels.block_sparse_attention(q, k, v, block_map, scale=scale, return_lse=True)
    context = PlanContext(layout, Site(0, 0), scale, block_size, LayerState())
    given, carried = CorrectionInput(q, k, v, out, lse, block_map, scale, None, context), LowRankResidual()
    levels, directions = carried.lack(given, q)
    found = order()

    def correct() -> torch.Tensor:
        return carried.add(given, kernels.permute_rows(levels, found), directions)

    return {
        "unpack": lambda: unpack_bits(bits, columns),
        "score": score,
        "map": lambda: BlockMap.from_mask(mask[None] | forced(), tokens, tokens, block_size).density(),
        "reorder": reorder,
        "correct": correct,
    }


def device_name(device: torch.device) -> str:
    """What the times belong to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
