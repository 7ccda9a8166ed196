"""The benchmarks of the profiler on a CPU: what is predicted is what the profiler counts, no call is lost."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from gpu_bench import profile_times, profiling_cost
from gpu_bench.models import Model, smooth_qkv
from gpu_bench_cpu import CPU

from dit_sparse.patterns.checks import check_header, check_table
from dit_sparse.profiler import Recording, RecordSettings, even_groups, measure_cost
from dit_sparse.profiler.assignment import assign, step_cost
from dit_sparse.profiler.problem import Problem

BLOCK = (16, 16)
NO_TEXT = Model("wan", (3, 9, 11), 7, 16, 40, 2, 0.2)
TEXT_LAST = Model("hunyuan_video", (3, 5, 7), 6, 16, 60, 1, 0.1, 21, "last")
TEXT_FIRST = Model("cogvideox", (3, 5, 7), 6, 16, 42, 2, 0.2, 21, "first")


def two_ms(run, budget_ms):
    """Everything takes 2 ms."""
    assert budget_ms > 0
    run()
    return 2.0


pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.parametrize("model", [NO_TEXT, TEXT_LAST, TEXT_FIRST], ids=lambda m: m.family)
def test_profile_times(model):
    rows = profile_times.profile_rows("toy", model, replace(CPU, timer=two_ms), BLOCK)
    assert json.loads(json.dumps(rows)) == rows
    assert not [row["note"] for row in rows if row.get("note")]
    by_name = {row["profile"]: row for row in rows}
    assert set(by_name) == set(profile_times.PROFILES)
    for name, row in by_name.items():
        # Attention, map, and bits or scores cost all heads 2 ms each; so does moving them, where they move.
        moved = name != "masks" or model is TEXT_FIRST
        assert row["predicted ms"] == (8.0 if moved else 6.0)
        assert row["measured ms"] == 2.0 and row["ratio"] == (4.0 if moved else 3.0)
        assert row["dense ms"] == 2.0
        assert all(row[f"{part}: one call"] >= 0 for part in profile_times.STAGES)
        assert row["attend: one call"] > 0 and row["plan: one call"] > 0
        asked = [density for _, _, density in profile_times.PROFILES[name]]
        heads = np.resize(asked, model.heads)
        if model is NO_TEXT:
            assert row["density"] == pytest.approx(heads.mean(), abs=0.02)
        else:
            assert heads.mean() <= row["density"] + 0.02 < 1


@pytest.mark.parametrize("name", profile_times.PROFILES)
def test_the_prediction_is_the_profilers(name):
    """Of a table with another time for everything."""
    x = smooth_qkv(NO_TEXT.layout, NO_TEXT.heads, NO_TEXT.dim, "cpu")
    times = iter(range(1, 100))
    table = measure_cost(
        *("cpu", NO_TEXT.layout, NO_TEXT.heads, NO_TEXT.dim),
        command="test",
        dtype=torch.bfloat16,
        block_size=BLOCK,
        timer=lambda run, budget_ms: float(next(times)),
    )
    profile = profile_times.made_profile(NO_TEXT, profile_times.PROFILES[name], x, BLOCK)
    check_header(profile.header)
    check_table(profile.table, profile.header)
    chosen, header = profile.table, profile.header
    facts = {part: getattr(header, part) for part in ("model", "grid", "schedule", "calibration")}
    facts |= {"templates": (), "axes": chosen.axes, "sensitivity": torch.ones(1, 1), "mass": {}}
    unused = dict.fromkeys((field.name for field in fields(Recording)), torch.zeros(*chosen.sizes, 0))
    problem = Problem(Recording(**unused | facts), table)
    pairs = np.rint(chosen.density.double().numpy() * problem.total)
    given = assign(problem, chosen.kind.numpy(), pairs, np.zeros(pairs.shape))
    expected = step_cost(problem, given, problem.time)
    assert sum(profile_times.predicted(profile, table).values()) == pytest.approx(expected, rel=0.01)


def test_a_shape_that_does_not_fit_is_a_note():
    def no_room(run, budget_ms):
        raise torch.OutOfMemoryError("no room")

    broken = replace(CPU, timer=no_room)
    (row,) = profile_times.profile_rows("toy", NO_TEXT, broken, BLOCK)
    assert "no room" in row["note"] and row["shape"] == "toy"
    (row,) = profiling_cost.recording_rows("toy", NO_TEXT, broken)
    assert "no dense kernel" in row["note"]


@pytest.mark.parametrize("limit_s", [1e6, 0.0])
def test_profiling_cost(limit_s):
    rows = profiling_cost.recording_rows("toy", TEXT_LAST, CPU, limit_s)
    assert json.loads(json.dumps(rows)) == rows
    *kinds, whole = rows
    assert {row["calls"] for row in kinds} == set(profiling_cost.call_counts(TEXT_LAST, SETTINGS))
    assert whole["hours"] == pytest.approx(sum(row["hours"] for row in kinds), abs=0.03)
    assert "60 layers x 1 branches x 4 groups x 2 observed steps x 2 prompts" in whole["note"]
    for row in kinds:
        noted = limit_s == 0 and row["calls"] != profiling_cost.DENSE
        assert row.get("note") == ("4 of 6 heads observed: seconds scaled, memory not" if noted else None)
        assert row["seconds"] >= 0 and row["number"] > 0
    # float32 for six heads of 4 x 4 blocks, 60 layers, 4 groups, twice
    assert whole["mass in host memory GB"] == round(2 * 60 * 4 * 6 * 16 * 4 / 1e9, 3)


SETTINGS = RecordSettings(even_groups(50, 4, 10))


def test_every_attention_call_of_a_recording_is_counted():
    counts = profiling_cost.call_counts(NO_TEXT, SETTINGS)
    assert counts[profiling_cost.FIRST] == 4 * 40
    observed = sum(counts.values()) - counts[profiling_cost.DENSE]
    assert observed == 2 * 40 * 2 * 8  # prompts, layers, branches, observed steps
    assert sum(counts.values()) == 2 * 40 * 2 * 50 + 4 * 41 * 40
