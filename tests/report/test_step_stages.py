"""Stages of sparse attention, columns per step and the forecast: sums that must come out."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import pytest
import tiny
import torch
from report_samples import make_pair, make_stats

import dit_sparse
from dit_sparse.report import generation
from dit_sparse.report.breakdown import stages
from dit_sparse.report.clock import Stopwatch
from dit_sparse.report.generation import Run, timed_run
from dit_sparse.report.schema import RunTime, Stage, Time
from dit_sparse.report.steps import step_charts
from dit_sparse.report.times import forecast_section, time_section

SMALL = {"height": 48, "width": 64, "num_frames": 5, "num_inference_steps": 4}
FIELDS = {"density": 0.5, "dense_steps": 1, "dense_layers": [0], "min_tokens": 0, "block_size": 8}


class Ticking(Stopwatch):
    """Marks are whole numbers: every interval counts the marks inside of it, and sums are exact."""

    ticks = count()

    def mark(self) -> Any:
        return next(self.ticks)

    def seconds(self, start: Any, end: Any) -> float:
        return float(end - start)


def measured(family: str, **fields: Any) -> Run:
    make, inputs = tiny.FAMILIES[family]
    pipe, call = make(), inputs() | SMALL
    del call["output_type"]
    with dit_sparse.sparse_attention(pipe, "svg2", **(FIELDS | fields)) as handle, torch.no_grad():
        run = timed_run(pipe, call, seed=0, handle=handle, measure_parts=True)
        assert all(runtime.recorder is None for runtime in handle.runtimes)
    return run


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@pytest.mark.parametrize("correction", ["none", "pooled"])
def test_stages_add_up_to_the_attention(family, correction, monkeypatch):
    monkeypatch.setattr(generation, "Stopwatch", Ticking)
    run = measured(family, correction=correction)
    expected = ["order", "permute", "select", "attend", "restore", "other", "dense"]
    if correction == "pooled":
        expected.insert(4, "correct")
    assert list(run.stages) == expected
    assert sum(seconds for seconds, _ in run.stages.values()) == run.attention_s > 0
    for step, attention in enumerate(run.step_attention_s):
        assert sum(by_step[step] for _, by_step in run.stages.values()) == attention > 0
    assert run.stages["attend"][1][0] == 0  # the first step is dense
    assert run.stages["dense"][1][0] == run.step_attention_s[0]
    assert run.stages["dense"][1][1] > 0  # layer 0 always is
    assert sum(run.step_linear_s) == run.linear_s
    assert sum(run.step_transformer_s) == run.transformer_s


def test_a_carried_plan_costs_no_ordering(monkeypatch):
    monkeypatch.setattr(generation, "Stopwatch", Ticking)
    run = measured("wan", refresh_interval=3)
    ordered = [step for step, seconds in enumerate(run.stages["order"][1]) if seconds > 0]
    selected = [step for step, seconds in enumerate(run.stages["select"][1]) if seconds > 0]
    assert (ordered, selected) == ([1], [1, 2, 3])


def test_observed_calls_count_as_dense(monkeypatch):
    """Re-ttention plans sparse attention within its dense refresh steps: no stage of a sparse call."""
    monkeypatch.setattr(generation, "Stopwatch", Ticking)
    make, inputs = tiny.FAMILIES["wan"]
    call = inputs() | SMALL
    del call["output_type"]
    pipe = make()
    fields = {"dense_steps": 1, "min_tokens": 0, "block_size": 8}
    with dit_sparse.sparse_attention(pipe, "rettention", **fields) as handle, torch.no_grad():
        run = timed_run(pipe, call, seed=0, handle=handle, measure_parts=True)
    assert (
        Counter(r.dense_reason for r in run.stats.records)["observed"]
        + run.stats.dense_sites.get("dense_step", 0)
        > 0
    )
    assert run.stages["attend"][1][0] == 0
    assert run.stages["dense"][1][0] == run.step_attention_s[0]


def test_nothing_sparse_has_no_stage_but_dense(monkeypatch):
    monkeypatch.setattr(generation, "Stopwatch", Ticking)
    run = measured("wan", min_tokens=10**6)
    assert list(run.stages) == ["dense"]
    assert run.stages["dense"][0] == run.attention_s


def run_time(**changes: Any) -> RunTime:
    made = {
        "denoise_s": 6.0,
        "end_to_end_s": 8.0,
        "transformer_s": 5.0,
        "step_s": [4.0, 2.0],
        "attention_s": 3.0,
        "linear_s": 1.0,
        "step_transformer_s": [3.5, 1.5],
        "step_attention_s": [2.0, 1.0],
        "step_linear_s": [0.6, 0.4],
    }
    return RunTime(**(made | changes))


def test_columns_hold_the_whole_step():
    sparse = run_time(
        stages=[
            Stage(name="select", seconds_s=0.5, step_s=[0.0, 0.5]),
            Stage(name="attend", seconds_s=0.5, step_s=[0.0, 0.5]),
            Stage(name="dense", seconds_s=2.0, step_s=[2.0, 0.0]),
        ]
    )
    time = Time(sparse_s=6, sparse=sparse, dense=run_time(), warmup=False)
    dense_chart, sparse_chart = step_charts(time)
    assert [(p.key, p.seconds) for p in dense_chart.columns[0]] == [
        ("attention", 2.0),
        ("linear", 0.6),
        ("rest", pytest.approx(0.9)),
        ("between", 0.5),
    ]
    second = sparse_chart.columns[1]
    assert [(p.key, p.seconds) for p in second][:3] == [
        ("at-select", 0.5),
        ("at-attend", 0.5),
        ("at-dense", 0.0),
    ]
    for chart in (dense_chart, sparse_chart):
        assert [sum(p.seconds for p in column) for column in chart.columns] == pytest.approx([4.0, 2.0])
        assert [sum(p.share for p in column) for column in chart.columns] == pytest.approx([100, 50])
        assert (chart.ticks[0], chart.ticks[-1]) == ((100.0, "0"), (0.0, "4"))
    assert ("at-dense", "calls that ran dense") in sparse_chart.legend
    assert [part.share for part in stages(sparse)] == pytest.approx([100 / 6, 100 / 6, 200 / 3], abs=1e-3)


def test_both_runs_share_one_scale():
    slow = run_time(step_s=[9.0, 1.0], step_transformer_s=[8.0, 1.0])
    dense_chart, sparse_chart = step_charts(Time(sparse_s=6, sparse=run_time(), dense=slow, warmup=False))
    assert dense_chart.ticks == sparse_chart.ticks
    assert sum(p.share for p in sparse_chart.columns[0]) == pytest.approx(
        4 / 9 * sum(p.share for p in dense_chart.columns[0]), abs=0.01
    )


def test_steps_without_parts_and_runs_without_steps():
    bare = run_time(step_attention_s=[], step_linear_s=[], attention_s=None, linear_s=None)
    (chart,) = step_charts(Time(sparse_s=6, sparse=bare, warmup=False))
    assert [(p.name, p.seconds) for p in chart.columns[0]] == [
        ("transformer", 3.5),
        ("scheduler and guidance", 0.5),
    ]
    mixed = step_charts(Time(sparse_s=6, sparse=run_time(), dense=bare, warmup=False))
    assert [part.key for part in mixed[1].columns[0]] == [
        "rest",
        "between",
    ]  # what one lacks is shown of neither
    assert step_charts(Time(sparse_s=6, sparse=run_time(step_s=[]), warmup=False)) == []


def test_forecast_by_hand():
    pair = make_pair()
    assert pair.dense is not None
    made = forecast_section(pair.sparse, pair.dense)
    assert made is not None
    density = make_stats().density_total  # dense: 5.0 s denoising, 4.5 s transformer, 3.0 s attention
    saved = 3.0 * (1 - density)
    assert made.density == density
    assert made.attention_share == pytest.approx(3.0 / 4.5)
    assert made.speedup_attention == pytest.approx(1 / density)
    assert made.speedup_transformer == pytest.approx(4.5 / (4.5 - saved))
    assert made.speedup == pytest.approx(5.0 / (5.0 - saved))
    assert made.speedup_end_to_end == pytest.approx(6.0 / (6.0 - saved))
    assert made.limit_transformer == pytest.approx(4.5 / 1.5)


def test_no_forecast_without_the_dense_attention():
    pair = make_pair()
    assert pair.dense is not None
    unmeasured = Run(**{**vars(pair.dense), "attention_s": None})
    assert time_section(pair.sparse, unmeasured, warmup=False).forecast is None
    assert time_section(pair.sparse, None, warmup=False).forecast is None
