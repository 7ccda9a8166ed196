"""What the page works out from the report: parts of the time, scale, dense calls, numbers."""

from __future__ import annotations

import pytest
from report_samples import make_stats

from dit_sparse.layout import Site, SiteRecord
from dit_sparse.report.bands import BANDS, SCALE_TOP_DB, psnr_scale
from dit_sparse.report.breakdown import breakdown
from dit_sparse.report.density import dense_calls, density_section
from dit_sparse.report.schema import Report, RunTime, Time
from dit_sparse.report.templating import MISSING, byte_size, flatten, number, percent, ranges


def run_time(attention: float | None = 2.0, linear: float | None = 1.0) -> RunTime:
    return RunTime(
        denoise_s=6.0,
        end_to_end_s=10.0,
        transformer_s=5.0,
        step_s=[3, 3],
        attention_s=attention,
        linear_s=linear,
    )


def test_parts_add_up_to_the_whole_run():
    split = breakdown(Time(sparse_s=6, sparse=run_time(), dense=run_time(), warmup=False))
    assert split.dense is not None
    for parts in (split.dense, split.sparse):
        assert [part.seconds for part in parts] == [2, 1, 2, 1, 4]
        assert sum(part.share for part in parts) == pytest.approx(100)


def test_the_shorter_run_has_the_shorter_bar():
    half = RunTime(denoise_s=3, end_to_end_s=5, transformer_s=2.5, step_s=[], attention_s=1, linear_s=0.5)
    split = breakdown(Time(sparse_s=3, sparse=half, dense=run_time(), warmup=False))
    assert sum(part.share for part in split.sparse) == pytest.approx(50)


def test_parts_that_one_run_lacks_are_shown_of_neither():
    split = breakdown(Time(sparse_s=6, sparse=run_time(), dense=run_time(None, 1.0), warmup=False))
    for _, sparse in split.rows():
        assert sparse.key not in ("attention", "linear")
    assert [part.seconds for part in split.sparse] == [5, 1, 4]
    assert split.sparse[0].name == "transformer"


def test_clocks_that_disagree_give_no_negative_part():
    late = RunTime(denoise_s=5.0, end_to_end_s=5.0, transformer_s=5.001, step_s=[], attention_s=1, linear_s=1)
    parts = breakdown(Time(sparse_s=5, sparse=late, warmup=False)).sparse
    assert min(part.seconds for part in parts) == 0


def with_psnr(report: Report, psnr: float | None, floor: float | None) -> Report:
    assert report.metrics.floor is not None
    changed = report.metrics.floor.model_copy(update={"psnr": floor, "identical": floor is None})
    return report.model_copy(
        update={"metrics": report.metrics.model_copy(update={"psnr": psnr, "floor": changed})}
    )


def test_scale_places_run_floor_and_bands(written):
    _, report = written
    scale = psnr_scale(with_psnr(report, 25.0, 27.5))
    assert scale is not None
    low = float(scale.ticks[0][1])
    assert low <= 18.8
    for mark, value in zip(scale.marks, (25.0, 27.5)):
        assert mark.left == pytest.approx(100 * (value - low) / (SCALE_TOP_DB - low), abs=0.01)
        assert not mark.beyond
    assert [mark.name for mark in scale.marks[2:]] == [band.family for band in BANDS]
    assert all(0 <= mark.left < mark.right < 100 for mark in scale.marks[2:])


def test_scale_keeps_what_lies_beyond_at_its_edge(written):
    _, report = written
    scale = psnr_scale(with_psnr(report, None, 118.2))
    assert scale is not None
    run, floor = scale.marks[:2]
    assert (run.label, run.left, run.beyond) == ("identical", 100, True)
    assert (floor.label, floor.left, floor.beyond) == ("118.20 dB", 100, True)
    low = psnr_scale(with_psnr(report, 7.0, 30.0))
    assert low is not None
    assert low.ticks[0][1] == "5"


def test_bands_are_sourced_and_in_range():
    for band in BANDS:
        assert band.sources
        assert 10 < band.psnr[0] < band.psnr[1] < SCALE_TOP_DB
        for low, high in (band.ssim, band.lpips):
            assert 0 < low < high < 1


def test_every_dense_call_is_listed_once():
    records = make_stats(layers=3, steps=4).records
    listed = dense_calls(records)
    assert [(e.reason, e.steps, e.layers, e.calls) for e in listed] == [
        ("attention_mask", [3], [0], 2),
        ("dense_step", [0], [0, 1, 2], 6),
    ]
    assert listed[0].branches == ["conditional", "unconditional"]
    section = density_section(make_stats())
    assert sum(entry.calls for entry in section.dense_calls) == sum(section.dense_sites.values())
    assert sum(section.kernels.values()) == section.sites


def test_steps_with_the_same_dense_layers_share_an_entry():
    records = [
        SiteRecord(
            Site(layer, step, 4), 1.0 if layer == 2 else 0.3, "dense_layer" if layer == 2 else None, "x"
        )
        for step in range(4)
        for layer in range(3)
    ]
    (entry,) = dense_calls(records)
    assert (entry.steps, entry.layers, entry.calls, entry.branches) == ([0, 1, 2, 3], [2], 4, ["batched"])


def test_numbers_carry_their_unit_and_missing_ones_a_dash():
    assert (number(1.005, 1), number(None)) == ("1.0", MISSING)
    assert (percent(0.2512), percent(None)) == ("25.1 %", MISSING)
    assert (byte_size(512), byte_size(3 * 2**30), byte_size(None)) == ("512 B", "3.0 GiB", MISSING)
    assert ranges([0, 1, 2, 7, 5, 4], start=1) == "1\N{EN DASH}3, 5\N{EN DASH}6, 8"
    assert ranges([]) == ""
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": 2}) == {"a.b": 1, "a.c.d": None, "e": 2}
