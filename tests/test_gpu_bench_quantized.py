"""The low-precision benchmark on a CPU at toy shapes: every row is there, and the errors are the kernels'."""

import pytest
import torch
from gpu_bench.harness import random_map
from gpu_bench.quantized import error_rows, quantized_rows, slice_error, tune_rows
from gpu_bench.tuning import tiles
from gpu_bench_cpu import CPU

from dit_sparse.kernels import block_sparse_attention
from dit_sparse.kernels.dispatch import installed, triton_interpreted
from dit_sparse.kernels.quantize import LOW_PRECISIONS

interpreted = pytest.mark.skipif(
    not (installed("triton") and triton_interpreted()), reason="needs Triton's interpreter"
)


def test_slice_error_is_relative_and_against_float64():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 300, 2, 32) for _ in range(3))
    block_map = random_map(300, 2, 0.5, "cpu")
    out = block_sparse_attention(q, k, v, block_map, impl="reference")
    assert slice_error(out, q, k, v, block_map) < 1e-5
    assert slice_error(out * 1.01, q, k, v, block_map) == pytest.approx(0.01, rel=1e-3)


def test_errors_tell_the_precisions_and_the_smoothing_apart():
    rows = error_rows((600, 2, 64), CPU)
    assert not any(row.get("note") for row in rows)
    errors = {(row["data"], row["precision"], row.get("smoothed")): row["error"] for row in rows}
    assert len(errors) == len(rows) == 2 * (1 + 2 * len(LOW_PRECISIONS))
    for data in ("normal", "key offsets"):
        assert errors[data, "native", None] < errors[data, "int8", True] < errors[data, "int4", True]
    for precision in ("int8", "int4"):
        assert errors["key offsets", precision, False] > 2 * errors["key offsets", precision, True]


@interpreted
def test_rows_count_quantisation_in_and_apart():
    rows = quantized_rows("toy", (130, 1, 32), CPU)
    assert not [row for row in rows if row.get("note") and "flash4" not in str(row["kernel"])]
    kernels = [row["kernel"] for row in rows]
    for precision in LOW_PRECISIONS:
        assert kernels.count(f"quantise {precision}") == 1
        for kernel in (f"{precision} triton", f"{precision} triton, kernel alone"):
            assert kernels.count(kernel) == 2
    for row in rows:
        kernel = str(row["kernel"])
        if kernel.endswith(" triton"):
            assert 0 < row["error"] < 0.5
        if "density" in row and not kernel.startswith("bf16"):
            assert row["vs_triton"] > 0


@interpreted
def test_tuning_runs_every_configuration_and_shows_its_error():
    choices = {32: (tiles(64, 32, 4), tiles(128, 128, 8, overlap=True))}
    e4m3_choices = {32: (tiles(128, 64, 8, registers=128, split=True),)}
    rows = tune_rows(((130, 1, 32),), choices, e4m3_choices, CPU)
    assert not [row for row in rows if row.get("note")]
    found = {
        precision: {row["tile"] for row in rows if row["precision"] == precision}
        for precision in ("int8", "int8_fp8", "fp8")
    }
    assert found["int8"] == {"default", "64x32", "128x128"}
    assert found["int8_fp8"] == found["fp8"] == {"default", "128x64"}
    assert len(rows) == 7
    assert all(row["ms"] > 0 and row["max_error"] < 1e-2 for row in rows)
    assert all(row["max_error"] == 0 for row in rows if row["tile"] == "default")
