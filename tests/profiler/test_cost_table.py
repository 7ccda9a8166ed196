"""Measured times: interpolation, other lengths, files, and the measurement itself on a CPU."""

import json
import time

import numpy as np
import pytest
import torch
from cost_samples import linear_table
from planted_recording import planted

from dit_sparse.layout import TokenLayout
from dit_sparse.patterns import DENSE, DYNAMIC, MASK
from dit_sparse.profiler.cost import TimeCost, time_cost
from dit_sparse.profiler.cost_table import AttentionTime, CostTable
from dit_sparse.profiler.measure_cost import measure_cost, planning_runs
from dit_sparse.profiler.timing import wall_ms


def test_times_are_interpolated_and_do_not_fall():
    times = ((0.1, 2.0), (0.5, 6.0), (0.6, 5.0), (1.0, 12.0))
    table = linear_table().model_copy(
        update={"attention": tuple(AttentionTime(tokens=1000, density=d, ms=ms) for d, ms in times)}
    )
    at = table.sparse_ms(1000, np.array([0.0, 0.05, 0.1, 0.3, 0.5, 0.6, 0.8, 1.0]))
    np.testing.assert_allclose(at, [1.0, 1.5, 2.0, 4.0, 6.0, 6.0, 9.0, 12.0])
    assert table.sparse_ms(1000, 0.3, heads=1) == pytest.approx(4.0 / table.heads)


@pytest.mark.parametrize(("lengths", "exponent"), [((1000,), 2.0), ((1000, 4000), 1.5)])
def test_other_lengths_by_the_measured_exponent(lengths, exponent):
    table = linear_table(lengths=lengths, exponent=exponent)
    for tokens in (500, 1000, 2000, 4000, 16000):
        factor = (tokens / 1000) ** exponent
        assert table.sparse_ms(tokens, 0.4) == pytest.approx(linear_table().sparse_ms(1000, 0.4) * factor)
        assert table.dense_ms(tokens) == pytest.approx(8.0 * factor)


def test_what_planning_costs_whom():
    table = linear_table(planning={"unpack": 0.4, "score": 0.8, "map": 0.2, "reorder": 1.6, "correct": 0.9})
    cost = TimeCost(table, 1000, layers=3, num_heads=table.heads)
    kinds = np.array([MASK, DYNAMIC, DENSE])
    alone = table.sparse_ms(1000, 0.2, heads=1)
    planned = (cost.heads(kinds, np.full(3, 0.2)) - alone) * table.heads
    np.testing.assert_allclose(planned, [0.6, 1.0, 0.6])
    assert cost.reorder() == pytest.approx(1.6) and cost.dense() == pytest.approx(3 * 8.0)
    assert cost.correction() == pytest.approx(0.9)
    assert table.planning_ms("reorder", 3000) == pytest.approx(1.6 * 3), "copies grow with the tokens"
    assert linear_table().planning_ms("score", 1000) == 0.0


def test_files(tmp_path):
    table = linear_table(lengths=(1000, 3000), precisions=("native", "int8"))
    table.save(tmp_path / "h100.json")
    assert CostTable.load(tmp_path / "h100.json") == table
    assert table.label == "Planted GPU, 2026-11-23" and table.precisions == ("native", "int8")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format_version": 2}, "format_version"),
        ({"spare": 1}, "spare"),
        ({"attention": [{"tokens": 1, "density": 1.5, "ms": 1.0}]}, "density"),
        ({"attention": [{"tokens": 1, "density": 0.5, "ms": 1.0}]}, "two densities"),
        ({"attention": [{"tokens": 1, "density": 0.5, "ms": 1.0, "precision": "int3"}]}, "int3"),
        ({"dense": []}, "dense"),
        ({"dense": [{"tokens": 10, "kernel": "k", "ms": "nan"}]}, "ms"),
    ],
    ids=str,
)
def test_broken_files_are_refused(tmp_path, change, match):
    facts = json.loads(linear_table().model_dump_json()) | change
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=f"broken.json is no cost table of version 1(.|\n)*{match}"):
        CostTable.load(path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match="is no cost table"):
        CostTable.load(path)


def test_a_table_for_another_model_is_refused():
    recording = planted(masses=False)
    with pytest.raises(ValueError, match="head size 128, the model has 64"):
        time_cost(linear_table(head_dim=128), recording.model, recording.grid)
    with pytest.raises(ValueError, match=r"blocks of \(128, 128\), the recording has \(16, 16\)"):
        time_cost(linear_table(block_size=(128, 128)), recording.model, recording.grid)
    with pytest.raises(ValueError, match="precision 'fp8' was not measured on Planted GPU"):
        linear_table().sparse_ms(1000, 0.5, "fp8")


def test_measured_on_a_cpu():
    calls = []

    def clock(run, budget_ms):
        assert budget_ms > 0
        run()
        calls.append(run)
        return float(len(calls))

    layouts = [TokenLayout(2, 4, 5), TokenLayout(2, 5, 7, 9, "first")]
    options = {"dtype": torch.float32, "block_size": (16, 16), "densities": (0.25, 1.0), "timer": clock}
    table = measure_cost("cpu", layouts, 3, 16, command="me", precisions=("native", "int8"), **options)
    assert {(row.tokens, row.precision) for row in table.attention} == {(40, "native"), (79, "native")}, (
        "a CPU only emulates int8"
    )
    # Rows keep whole blocks, at least one of 3 and of 5.
    sparse = [row.density for row in table.attention if row.density < 1]
    assert len(sparse) == 2 and all(0.2 <= density <= 0.45 for density in sparse)
    assert len(table.dense) == 2 and len(table.planning) == 2 * 5
    assert (table.heads, table.head_dim, table.block_size, table.dtype) == (3, 16, (16, 16), "float32")
    assert (table.command, table.torch_version) == ("me", torch.__version__)
    with pytest.raises(ValueError, match=r"two or more in \(0, 1\], got \(0.5,\)"):
        measure_cost("cpu", layouts, 3, 16, command="", densities=(0.5,))


def test_the_wall_clock_leaves_the_warm_up_out():
    pauses = iter([0.2, 0.0, 0.01, 0.0])
    started = time.perf_counter()
    assert wall_ms(lambda: time.sleep(next(pauses)), 1.0) < 10.0
    assert time.perf_counter() - started > 0.2


def test_planning_runs_are_what_a_call_does():
    layout = TokenLayout(2, 4, 5, 6, "last")
    x = torch.randn(3, 1, 46, 2, 8).unbind()
    runs = planning_runs(layout, *x, (16, 16))
    assert runs["unpack"]().shape == (2, 3, 3)
    chosen = runs["score"]()
    assert chosen.shape == (1, 2, 3, 3) and chosen[..., -1].all(), "columns of text are kept"
    assert 0 < runs["map"]() < 1
    # Rows are moved, not changed.
    assert sorted(runs["reorder"]().flatten().tolist()) == sorted(x[0].flatten().tolist())
    assert runs["correct"]().shape == x[0].shape and runs["correct"]().isfinite().all()
