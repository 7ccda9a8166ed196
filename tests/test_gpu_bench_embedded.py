"""The benchmarks on the embedded model itself, on a CPU with a clock that runs everything once."""

import time

import pytest
from gpu_bench import embedded_times
from gpu_bench.harness import Settings


def once(run, budget_ms):
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1e3


@pytest.fixture(scope="module")
def calls():
    """Of 192 tokens."""
    return embedded_times.captured((9, 64, 64), Settings(True, "cpu", once))


def test_profiles_are_timed_beside_their_prediction(calls, monkeypatch):
    monkeypatch.setattr(embedded_times, "captured", lambda size, settings: calls)
    rows = embedded_times.bench_embedded_times(Settings(True, "cpu", once))
    assert [row["profile"] for row in rows] == ["balanced", "fast"]
    for row in rows:
        assert "note" not in row, row
        assert row["N"] == calls[0].layout.num_tokens
        assert row["predicted ms"] > 0 and row["measured ms"] > 0 and 0 < row["density"] <= 1
        assert row["ratio"] == pytest.approx(row["predicted ms"] / row["measured ms"], abs=2e-3)


def test_methods_are_timed_and_what_fails_is_a_note(calls, monkeypatch):
    monkeypatch.setattr(embedded_times, "captured", lambda size, settings: calls)
    monkeypatch.setattr(embedded_times, "METHODS", ("draft", "mosaic", "nothing"))
    dense, draft, mosaic, nothing = embedded_times.bench_embedded_methods(Settings(True, "cpu", once))
    assert dense["density"] == 1.0 and "nothing" in nothing["note"]
    for row in (draft, mosaic):
        assert row["ms"] > 0 and "note" not in row, row
