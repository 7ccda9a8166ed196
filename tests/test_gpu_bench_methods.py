"""The benchmark of whole runs, on a CPU at a tiny size."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_bench_cpu import CPU

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from gpu_bench import methods
from gpu_bench.models import MODELS

from dit_sparse.methods import ModelInfo, make_method

TINY = replace(MODELS["CogVideoX-5B 480p"], grid=(3, 8, 8), heads=2, text_tokens=16)


@pytest.mark.parametrize(
    ("name", "observed"), [("draft", 0), ("mosaic", 2), ("rettention", 9), ("svg2", 0), ("adaspa", 1)]
)
def test_the_calls_of_a_run_are_counted(name, observed):
    method = make_method(name, density=0.2, dense_steps=0.2, dense_layers=(), min_tokens=0)
    counts = methods.calls_of_run(method.build(ModelInfo("cogvideox", 2, 64)), TINY)
    assert sum(counts.values()) == 50
    assert counts["observed"] == observed
    assert counts["dense"] == (9 if observed else 10)


def test_rows_add_up():
    rows = methods.method_rows("tiny", TINY, ["mosaic", "draft", "no such"], CPU)
    assert [row["method"] for row in rows[1:]] == ["mosaic", "draft", "no such"]
    assert "unknown method" in rows[3]["note"]
    for row, dense_calls in zip(rows[1:3], (11, 10)):
        assert 0.15 < row["density"] < 0.5
        expected = (dense_calls + (50 - dense_calls) * row["density"]) / 50
        assert row["run density"] == pytest.approx(expected, abs=2e-3)
        assert min(row["attend, %"], row["planning, %"], row["call speed-up"]) > 0
    assert rows[1]["correction, %"] > 0
    assert rows[2]["correction, %"] == 0
    assert rows[1]["learning, % per sparse call"] > 0
