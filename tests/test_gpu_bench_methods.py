"""The benchmark of whole runs, on a CPU at a tiny size."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_bench_cpu import CPU

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from gpu_bench import methods
from gpu_bench.models import MODELS

from dit_sparse.methods import ModelInfo, make_method

TINY = replace(MODELS["CogVideoX-5B 480p"], grid=(3, 8, 8), heads=2, text_tokens=16)
TINY_WAN = replace(MODELS["Wan-14B 720p"], grid=(3, 8, 8), heads=2)


@pytest.mark.parametrize(
    ("name", "observed"), [("draft", 0), ("mosaic", 2), ("rettention", 9), ("svg2", 0), ("adaspa", 1)]
)
def test_the_calls_of_a_run_are_counted(name, observed):
    method = make_method(name, density=0.2, dense_steps=0.2, dense_layers=(), min_tokens=0)
    counts = methods.calls_of_run(method.build(ModelInfo("cogvideox", 2, 64)), TINY)
    assert list(counts) == ["batched"]  # both branches in one call
    assert sum(counts["batched"].values()) == 50
    assert counts["batched"]["observed"] == observed
    assert counts["batched"]["dense"] == (9 if observed else 10)


def test_branches_with_forwards_of_their_own_are_walked_apart():
    method = make_method("mosaic", density=0.2, dense_steps=0.2, dense_layers=(), min_tokens=0)
    counts = methods.calls_of_run(method.build(ModelInfo("wan", 2, 64)), TINY_WAN)
    assert counts == {
        branch: {"dense": 9, "observed": 2, "sparse": 39} for branch in ("conditional", "unconditional")
    }


def test_times_of_branches_are_added(monkeypatch):
    """10 dense calls' worth of learning in one branch, none in the other; sparse calls take a quarter."""
    kinds = {
        "conditional": {"dense": 8, "observed": 2, "sparse": 40},
        "unconditional": {"dense": 10, "sparse": 40},
    }
    counted = {branch: Counter(found) for branch, found in kinds.items()}
    stages = {"attend": 20.0, "select": 3.0, "order": 1.0, "correct": 1.0}
    timed = {
        "conditional": methods.BranchTimes(600.0, 25.0, 25.0, stages, 0.2),
        "unconditional": methods.BranchTimes(100.0, 25.0, 25.0, stages, 0.2),
    }
    monkeypatch.setattr(methods, "calls_of_run", lambda *given: counted)
    monkeypatch.setattr(methods, "timed_calls", lambda *given, **options: timed)
    row = methods.timed_run(make_method("draft").build(ModelInfo("wan", 2, 64)), TINY_WAN, (), 100.0)
    assert row["learning, dense calls per run"] == 10.0
    assert row["run speed-up"] == round(100 / (20 + 80 / 4 + 10), 2)
    assert (row["attend, %"], row["planning, %"], row["correction, %"]) == (20.0, 4.0, 1.0)
    assert row["run density"] == round((20 + 80 * 0.2) / 100, 3)


def test_rows_add_up():
    names = ["mosaic", "draft", "rettention", "no such"]
    rows = methods.method_rows("tiny", TINY, [(name, 0.2) for name in names], CPU)
    assert [row["method"] for row in rows[1:]] == names
    assert "unknown method" in rows[4]["note"]
    for row, dense_calls in zip(rows[1:4], (11, 10, 18)):
        assert 0.15 < row["density"] < 0.5
        expected = (dense_calls + (50 - dense_calls) * row["density"]) / 50
        assert row["run density"] == pytest.approx(expected, abs=2e-3)
        assert min(row["attend, %"], row["planning, %"], row["call speed-up"]) > 0
    assert rows[1]["correction, %"] > 0
    assert rows[2]["correction, %"] == 0
    assert rows[1]["learning, % per sparse call"] > 0
