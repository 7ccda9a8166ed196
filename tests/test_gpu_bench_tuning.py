"""What the tuning benchmarks share, and the rows of two of them at toy shapes on the CPU."""

import pytest
import torch
from gpu_bench import attention, pooled, quantized
from gpu_bench.harness import Settings
from gpu_bench.tuning import _run_all, as_config, columns, compile_all, ranked, tiles, tuned
from gpu_bench_cpu import CPU

from dit_sparse.kernels.dispatch import installed, triton_interpreted

interpreted = pytest.mark.skipif(
    not (installed("triton") and triton_interpreted()), reason="needs Triton's interpreter"
)


def divide(a, b):
    """A case that fails for b = 0."""
    return a // b


def test_every_case_runs_in_a_process_and_a_failure_costs_its_own_row(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    failed = _run_all(int.__floordiv__, [(1, 1), (1, 0)], workers=1, each=None)
    assert set(failed) <= {(1, 1), (1, 0)} and "ZeroDivisionError" in failed[1, 0]


def test_nothing_is_compiled_without_a_gpu():
    assert compile_all(divide, [(1, 0)], CPU) == {}
    assert compile_all(divide, [], Settings(quick=True)) == {}


def test_a_wrong_kernel_shows():
    expected = torch.tensor([1.0, -4.0])
    row = tuned({"tile": "a"}, lambda: expected + 2, expected, None, CPU, 1e9)
    assert row["tile"] == "a" and row["ms"] > 0 and row["max_error"] == 0.5
    assert str(tuned({}, lambda: expected * torch.nan, expected, None, CPU, 1e9)["max_error"]) == "nan"
    assert tuned({}, lambda: expected, expected, "does not fit", CPU, 1e9)["note"] == "does not fit"


def test_failed_rows_come_last():
    rows = [{"D": 1, "tflops": None}, {"D": 1, "tflops": 5.0}, {"D": 0, "tflops": 1.0}]
    assert [row["tflops"] for row in ranked(rows, "D")] == [1.0, 5.0, None]


@pytest.mark.skipif(not installed("triton"), reason="triton is not installed")
def test_tiles_are_the_fields_of_a_configuration():
    chosen = tiles(128, 64, 8, 2, registers=128, split=True)
    config = as_config(chosen)
    assert (config.tile_m, config.tile_n, config.num_warps, config.num_stages) == (128, 64, 8, 2)
    assert config.tma and config.split and not config.overlap and config.registers == 128
    assert columns(chosen) == {
        "tile": "128x64",
        "warps": 8,
        "stages": 2,
        "registers": 128,
        "options": "tma split",
    }
    assert as_config(None) is None


def test_no_configuration_is_tried_twice():
    for choices in (
        *attention.HOPPER_TILES.values(),
        *attention.EARLIER_TILES.values(),
        *quantized.HOPPER_TILES.values(),
        *quantized.HOPPER_E4M3_TILES.values(),
        *pooled.TUNED_TILES.values(),
    ):
        assert len(choices) == len(set(choices)) >= 5


@interpreted
def test_rows_of_the_native_kernel():
    choices = {32: (tiles(64, 32, 4), tiles(128, 64, 8, overlap=True, registers=128))}
    rows = attention.tune_rows(((130, 1, 32),), choices, CPU)
    assert {row["tile"] for row in rows} == {"default", "64x32", "128x64"}
    assert all(row["ms"] > 0 and row["max_error"] < 1e-2 for row in rows)


@interpreted
def test_rows_of_pooled_attention():
    choices = {kernel: (tiles(64, 32, 4, 2, tma=False),) for kernel in pooled.TUNED_TILES}
    rows = pooled.tune_rows(((300, 1, 32),), choices, CPU)
    assert len(rows) == 4 and {row["kernel"] for row in rows} == set(pooled.TUNED_TILES)
    assert all(row["ms"] > 0 and row["max_error"] < 1e-2 for row in rows)
