"""Attention in low precision beside the bf16 sparse kernels: time, what quantising costs of it, and error.

Quantising reads every token, whatever the density: it stands in rows of its own, and the rows of a precision
count it in, next to the kernel alone. Errors are root mean squares against float64, relative to the output's,
over three query blocks of one head.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dit_sparse.kernels import block_sparse_attention
from dit_sparse.kernels.dispatch import BACKENDS, Request, resolve_backend
from dit_sparse.kernels.quantize import LOW_PRECISIONS, QuantizedTensors, quantize
from dit_sparse.layout import BlockMap
from gpu_bench.attention import EARLIER_TILES, TUNED_SHAPES
from gpu_bench.harness import (
    BLOCK,
    Row,
    Settings,
    attention_flops,
    benchmark,
    error_note,
    measure,
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

LOW_DENSITIES = (0.25, 0.1)
NATIVE = ("flash4", "triton")
OFFSETS = {3: 12.0, 5: -8.0, 11: 20.0}
"""Channels of k that get an offset, in standard deviations, for the data that smoothing is made for."""
ERROR_SHAPE = (8_192, 2, 128)
TUNED_PRECISIONS = ("int8", "int8_fp8", "fp8")
HOPPER_TILES: Choices = {
    128: (
        tiles(128, 128, 8, 2, overlap=True),
        tiles(128, 128, 8, 3, overlap=True),
        tiles(128, 64, 8, 3, registers=128),
        tiles(128, 64, 8, 3, overlap=True),
        tiles(128, 64, 4, 3),
        tiles(128, 64, 4, 5),
        tiles(64, 64, 4, 3),
        tiles(64, 64, 4, 3, overlap=True),
    ),
    64: (
        tiles(128, 128, 8, 3, overlap=True),
        tiles(128, 64, 8, 3, registers=128),
        tiles(128, 64, 8, 3, overlap=True, registers=128),
        tiles(128, 64, 4, 3),
        tiles(128, 64, 4, 3, overlap=True),
        tiles(64, 64, 4, 3, overlap=True),
    ),
}
"""What "tune-quantized" tries on Hopper for values in the input's precision, chosen as those of "tune"."""
HOPPER_E4M3_TILES: Choices = {
    128: (
        tiles(128, 128, 8, 3, split=True),
        tiles(128, 64, 8, 2, split=True, registers=128),
        tiles(128, 64, 8, 3, split=True, registers=128),
        tiles(128, 64, 8, 5, split=True, registers=128),
        tiles(64, 64, 4, 3),
        tiles(64, 64, 4, 3, split=True, registers=168),
        tiles(64, 64, 4, 3, split=True, registers=128),
    ),
    64: (
        tiles(128, 64, 8, 3, registers=128),
        tiles(128, 64, 8, 5, registers=128),
        tiles(128, 64, 4, 3),
        tiles(64, 128, 4, 3),
        tiles(64, 64, 4, 3),
    ),
}
"""The same for values in e4m3."""


@torch.no_grad()
def slice_error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap) -> float:
    """Error of ``out`` relative to attention in float64: first, middle and last query block of the last
    head."""
    mask = block_map.to_mask()[0, -1]
    squares, norms = 0.0, 0.0
    for block in (0, len(mask) // 2, len(mask) - 1):
        rows = slice(block * BLOCK[0], (block + 1) * BLOCK[0])
        kept = mask[block].repeat_interleave(BLOCK[1])[: block_map.num_keys]
        logits = q[0, rows, -1].double() @ k[0, kept, -1].double().T * q.shape[-1] ** -0.5
        expected = logits.softmax(dim=-1) @ v[0, kept, -1].double()
        squares += (out[0, rows, -1].double() - expected).square().sum().item()
        norms += expected.square().sum().item()
    return (squares / norms) ** 0.5


def _rounded_error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap) -> float:
    return float(f"{slice_error(out, q, k, v, block_map):.3g}")


@benchmark("quantized")
def bench_quantized(settings: Settings) -> list[Row]:
    """Sparse attention in low precision, quantisation counted in and apart, beside bf16 sparse attention."""
    rows: list[Row] = []
    for name, shape in settings.shapes.items():
        rows += quantized_rows(name, shape, settings)
    return rows


def quantized_rows(name: str, shape: tuple[int, int, int], settings: Settings) -> list[Row]:
    """Every precision at one shape (tokens, heads, head size)."""
    tokens, heads, dim = shape
    torch.manual_seed(0)
    q, k, v = random_qkv(tokens, heads, dim, settings.device)
    base: Row = {"shape": name, "N": tokens, "H": heads, "D": dim}
    refusals = {p: refusal("triton", dim, settings.device, p) for p in LOW_PRECISIONS}
    rows: list[Row] = []
    for precision, reason in refusals.items():
        row = base | {"kernel": f"quantise {precision}"}
        if reason is None:
            row["ms"] = round(settings.time(partial(quantize, q, k, v, precision, impl="triton")), 3)
        rows.append(row | ({"note": reason} if reason else {}))
    for density in LOW_DENSITIES:
        block_map = random_map(tokens, heads, density, settings.device)
        kept = base | {"density": round(block_map.density().item(), 4)}
        native = [
            _native_row(kept | {"kernel": f"bf16 {impl}"}, impl, q, k, v, block_map, settings)
            for impl in NATIVE
        ]
        rows += native
        for precision, reason in refusals.items():
            if reason is None:
                low = _low_rows(kept, precision, q, k, v, block_map, settings)
            else:
                low = [kept | {"kernel": precision, "note": reason}]
            for row in low:
                for impl, theirs in zip(NATIVE, native):
                    if theirs.get("ms") and row.get("ms"):
                        row[f"vs_{impl}"] = round(theirs["ms"] / row["ms"], 2)  # type: ignore[operator]
            rows += low
    return rows


def _native_row(
    row: Row, impl: str, q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, settings: Settings
) -> Row:
    if reason := refusal(impl, q.shape[-1], settings.device):
        return row | {"note": reason}
    run = partial(block_sparse_attention, q, k, v, block_map, impl=impl)
    row = measure(row, run, settings, attention_flops(block_map, q.shape[-1]))
    return row | {"error": _rounded_error(run(), q, k, v, block_map)} if row.get("ms") else row


def _low_rows(
    row: Row, precision: str, q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, settings: Settings
) -> list[Row]:
    """With quantisation, and the kernel alone."""
    from dit_sparse.kernels import triton_quantized

    dim = q.shape[-1]
    flops = attention_flops(block_map, dim)
    whole = partial(block_sparse_attention, q, k, v, block_map, impl="triton", precision=precision)
    with_all = measure(row | {"kernel": f"{precision} triton"}, whole, settings, flops)
    if not with_all.get("ms"):
        return [with_all]
    with_all["error"] = _rounded_error(whole(), q, k, v, block_map)
    levels = quantize(q, k, v, precision, with_lse=False, impl="triton")
    alone = partial(triton_quantized.attend, levels, block_map, scale=dim**-0.5, return_lse=False)
    return [with_all, measure(row | {"kernel": f"{precision} triton, kernel alone"}, alone, settings, flops)]


@benchmark("quantized-error")
def bench_error(settings: Settings) -> list[Row]:
    """Error of every precision on normal data and on keys with channel offsets, smoothed or not."""
    return error_rows(ERROR_SHAPE, settings)


def error_rows(shape: tuple[int, int, int], settings: Settings) -> list[Row]:
    """Both kinds of data at one shape, density 0.25; emulated where the kernel cannot run."""
    tokens, heads, dim = shape
    rows: list[Row] = []
    for data in ("normal", "key offsets"):
        torch.manual_seed(0)
        q, k, v = random_qkv(tokens, heads, dim, settings.device)
        block_map = random_map(tokens, heads, 0.25, settings.device)
        if data == "key offsets":
            for channel, offset in OFFSETS.items():
                k[..., channel] += offset
        row: Row = {"data": data, "N": tokens, "H": heads, "D": dim}
        native = block_sparse_attention(q, k, v, block_map)
        rows.append(row | {"precision": "native", "error": _rounded_error(native, q, k, v, block_map)})
        for precision in LOW_PRECISIONS:
            request = Request(q.device, q.dtype, dim, BLOCK, precision=precision)
            impl = resolve_backend("auto", request)
            forward = BACKENDS[impl].forward(precision)
            for smooth in (True, False):
                case = row | {"precision": precision, "smoothed": smooth, "impl": impl}
                try:
                    out, _ = forward(q, k, v, block_map, scale=dim**-0.5, return_lse=False, smooth=smooth)
                    rows.append(case | {"error": _rounded_error(out, q, k, v, block_map)})
                except Exception as error:  # one precision's failure must not cost the table
                    rows.append(case | {"error": None, "note": error_note(error)})
    return rows


def run_tuned(precision: str, dim: int, chosen: Tiles) -> None:
    """The kernel with one configuration, on a short sequence."""
    q, k, v = random_qkv(WARM_TOKENS, 2, dim)
    levels = quantize(q, k, v, precision, with_lse=False, impl="triton")
    _attend(levels, random_map(WARM_TOKENS, 2, 0.5), chosen)


def _attend(levels: QuantizedTensors, block_map: BlockMap, chosen: Tiles | None) -> Tensor:
    from dit_sparse.kernels import triton_quantized

    named = {"scale": levels.head_dim**-0.5, "return_lse": False, "config": as_config(chosen)}
    return triton_quantized.attend(levels, block_map, **named)[0]


@benchmark("tune-quantized", default=False)
def bench_tune_quantized(settings: Settings) -> list[Row]:
    """The low-precision kernel over tile configurations at density 0.25: the source of its table."""
    hopper = torch.cuda.get_device_capability() >= (9, 0)
    return tune_rows(
        TUNED_SHAPES,
        HOPPER_TILES if hopper else EARLIER_TILES,
        HOPPER_E4M3_TILES if hopper else EARLIER_TILES,
        settings,
    )


def tune_rows(
    shapes: tuple[tuple[int, int, int], ...],
    choices: Choices,
    e4m3_choices: Choices,
    settings: Settings,
) -> list[Row]:
    """The default and every configuration at these shapes (tokens, heads, head size), the kernel alone."""
    dims = dict.fromkeys(shape[2] for shape in shapes)
    tried = {p: e4m3_choices if LOW_PRECISIONS[p].fp8_values else choices for p in TUNED_PRECISIONS}
    refusals = {p: refusal("triton", next(iter(dims)), settings.device, p) for p in TUNED_PRECISIONS}
    able = [p for p in TUNED_PRECISIONS if refusals[p] is None]
    cases = [(p, dim, chosen) for p in able for dim in dims for chosen in tried[p][dim]]
    failures = compile_all(run_tuned, cases, settings)
    rows: list[Row] = [
        {"precision": p, "N": 0, "D": 0, "tflops": None, "note": refusals[p]}
        for p in TUNED_PRECISIONS
        if p not in able
    ]
    for tokens, heads, dim in shapes:
        torch.manual_seed(0)
        q, k, v = random_qkv(tokens, heads, dim, settings.device)
        block_map = random_map(tokens, heads, 0.25, settings.device)
        flops = attention_flops(block_map, dim)
        for precision in able:
            levels = quantize(q, k, v, precision, with_lse=False, impl="triton")
            expected = _attend(levels, block_map, None)
            for chosen in (None, *tried[precision][dim]):
                row: Row = {"precision": precision, "N": tokens, "D": dim} | columns(chosen)
                failure = failures.get((precision, dim, chosen))
                run = partial(_attend, levels, block_map, chosen)
                rows.append(tuned(row, run, expected, failure, settings, flops))
    return ranked(rows, "D", "N", "precision")
